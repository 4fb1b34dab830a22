"""`corral task wait`."""

from typing import Annotated

import typer

from corral.cli.completion import task_ids
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import note, print_json
from corral.cli.running import with_client
from corral.client import Corral, Phase


def wait(
    task_ids: Annotated[list[str], typer.Argument(help="Ids of tasks.", metavar="TASK", autocompletion=task_ids)],
    json: Json = False,
    url: Url = "",
) -> int:
    """Wait for tasks to end; exits with 1 unless all completed."""

    async def work(corral: Corral) -> int:
        tasks = [await corral.tasks.wait(task_id) for task_id in task_ids]
        if json:
            print_json(tasks)
        for task in tasks if not json else []:
            note("", f"{task.id} is {task.phase.value}{f' ({task.reason.value})' if task.reason else ''}")
        return 0 if all(task.phase is Phase.COMPLETED for task in tasks) else 1

    return with_client(url, work)


app = verb_app(wait)
