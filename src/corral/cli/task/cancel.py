"""`corral task cancel`."""

from typing import Annotated

import typer

from corral.cli.completion import task_ids
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import note, print_json
from corral.cli.running import with_client
from corral.client import Corral, TaskView
from corral.kernel.errors import InvalidSpec


def cancel(
    task_ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of tasks.", metavar="TASK", autocompletion=task_ids)
    ] = None,
    group: Annotated[str, typer.Option("--group", help="All tasks of this group.")] = "",
    json: Json = False,
    url: Url = "",
) -> None:
    """Cancel tasks; their processes die within a second."""
    if bool(task_ids) == bool(group):
        raise InvalidSpec("name tasks, or one --group")

    async def work(corral: Corral) -> None:
        tasks: list[TaskView] = [await corral.tasks.cancel(task_id) for task_id in task_ids or []]
        if group:
            tasks = list((await corral.tasks.cancel_group(group)).tasks)
        if json:
            print_json(tasks)
        for task in tasks if not json else []:
            note("", f"{task.id} is {task.phase.value}{f' ({task.reason.value})' if task.reason else ''}")

    with_client(url, work)


app = verb_app(cancel)
