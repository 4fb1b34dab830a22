"""`corral task rerun`."""

from corral.cli.lazy import verb_app
from corral.cli.options import Json, TaskId, Url
from corral.cli.output import note, print_json
from corral.cli.running import with_client
from corral.client import Corral


def rerun(task_id: TaskId, json: Json = False, url: Url = "") -> None:
    """Run a task that has ended again."""

    async def work(corral: Corral) -> None:
        task = await corral.tasks.rerun(task_id)
        if json:
            print_json(task)
        else:
            note("", f"{task.id} is {task.phase.value} again")

    with_client(url, work)


app = verb_app(rerun)
