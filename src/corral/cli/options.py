"""Options that many verbs share."""

from typing import Annotated

import typer

from corral.cli.completion import task_ids, worker_ids

Url = Annotated[
    str,
    typer.Option("--url", envvar="CORRAL_URL", help="Address of the scheduler.", show_default="http://127.0.0.1:7070"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TaskId = Annotated[str, typer.Argument(help="Id of the task.", metavar="TASK", autocompletion=task_ids)]
WorkerId = Annotated[str, typer.Argument(help="Id of the worker.", metavar="WORKER", autocompletion=worker_ids)]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many at most.")]
