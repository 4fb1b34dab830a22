"""The table of `corral task`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app(
    {
        "submit": Verb("corral.cli.task.submit", "Queue tasks from a file or stdin."),
        "schema": Verb("corral.cli.task.schema", "Print the JSON Schema of a task's payload."),
        "list": Verb("corral.cli.task.list", "List tasks, newest first."),
        "show": Verb("corral.cli.task.show", "Show one task with its runs."),
        "log": Verb("corral.cli.task.log", "Print a run's log; -f follows it."),
        "cancel": Verb("corral.cli.task.cancel", "Cancel tasks."),
        "rerun": Verb("corral.cli.task.rerun", "Run a task that has ended again."),
        "wait": Verb("corral.cli.task.wait", "Wait for tasks to end."),
        "story": Verb("corral.cli.task.story", "Tell everything that happened to a task."),
        "artifacts": Verb("corral.cli.task.artifacts", "List or fetch a task's artifacts."),
    },
    "Submit, list, show, follow, cancel and rerun tasks.",
)
