"""The table of `corral action`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app(
    {
        "run": Verb("corral.cli.action.run", "Run a command as an action, or fetch what it left before."),
        "show": Verb("corral.cli.action.show", "Show what a digest is, and its cached result."),
        "explain": Verb("corral.cli.action.explain", "Say what differs between two actions."),
    },
    "Run a command as a cached action; show and compare actions.",
)
