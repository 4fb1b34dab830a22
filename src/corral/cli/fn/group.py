"""The table of `corral fn`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app(
    {
        "deploy": Verb("corral.cli.fn.deploy", "Deploy a .wasm as a revision of a function."),
        "list": Verb("corral.cli.fn.list", "List functions."),
        "show": Verb("corral.cli.fn.show", "Show one function with its revisions and instances."),
        "call": Verb("corral.cli.fn.call", "Call a function and show who answered."),
        "switch": Verb("corral.cli.fn.switch", "Make a revision the default, or take the default from it."),
        "split": Verb("corral.cli.fn.split", "Split the requests between revisions."),
        "rollback": Verb("corral.cli.fn.rollback", "Go back to an earlier state."),
        "history": Verb("corral.cli.fn.history", "List every change."),
        "scale": Verb("corral.cli.fn.scale", "Say how many instances a revision has."),
        "logs": Verb("corral.cli.fn.logs", "Print what a function wrote; -f follows it."),
        "trace": Verb("corral.cli.fn.trace", "Show what a request went through, step by step."),
        "stop": Verb("corral.cli.fn.stop", "End the instances of a revision, and allow no more."),
        "start": Verb("corral.cli.fn.start", "Allow instances of a revision again."),
        "rm": Verb("corral.cli.fn.rm", "Remove a revision, or a function."),
    },
    "Deploy, call, switch and scale Wasm functions.",
)
