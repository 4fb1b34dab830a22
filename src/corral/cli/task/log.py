"""`corral task log`."""

from typing import Annotated

import typer

from corral.cli.follow import Follower
from corral.cli.lazy import verb_app
from corral.cli.options import TaskId, Url
from corral.cli.running import with_client
from corral.cli.status import Status
from corral.client import Corral
from corral.kernel.errors import NotFound


def log(
    task_id: TaskId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
    run: Annotated[int, typer.Option("--run", help="Which run; the newest if not given.")] = -1,
    offset: Annotated[int, typer.Option("--offset", min=0, help="First byte.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Pass control sequences on to the terminal.")] = False,
    url: Url = "",
) -> None:
    """Print a run's log; -f follows it."""

    async def work(corral: Corral) -> None:
        task = await corral.tasks.get(task_id)
        follower = Follower(Status(enabled=follow), raw=raw)
        try:
            if follow and run < 0 and not offset:
                await follower.follow(corral, task)
                return
            if not task.runs:
                raise NotFound(f"{task_id} has no run yet", cure=f"corral why {task_id}")
            chosen = run if run >= 0 else task.runs[-1].run
            await follower.copy_log(corral, task_id, chosen, offset=offset, follow=follow)
        finally:
            follower.status.close()

    with_client(url, work)


app = verb_app(log)
