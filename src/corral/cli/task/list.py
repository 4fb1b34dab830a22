"""`corral task list`."""

import shlex
from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Limit, Url
from corral.cli.output import at, print_json, print_table
from corral.cli.running import with_client
from corral.client import Corral, TaskView
from corral.kernel.units import format_duration


def list_tasks(
    phase: Annotated[str, typer.Option("--phase", help="Only tasks in this phase.")] = "",
    group: Annotated[str, typer.Option("--group", help="Only tasks of this group.")] = "",
    name: Annotated[str, typer.Option("--name", help="Only tasks of this name.")] = "",
    limit: Limit = 20,
    after: Annotated[str, typer.Option("--after", help="Go on after this page's cursor.")] = "",
    json: Json = False,
    url: Url = "",
) -> None:
    """List tasks, newest first."""

    async def work(corral: Corral) -> None:
        page = await corral.tasks.page(phase=phase, group=group, name=name, limit=limit, after=after)
        if json:
            print_json(page)
            return
        print_table(
            ("TASK", "PHASE", "NAME OR COMMAND", "CREATED", "TOOK", "RUNS", "WORKER"),
            [_row(task) for task in page.tasks],
            empty="no tasks",
            optional=("WORKER", "RUNS", "TOOK", "CREATED"),
            cut="NAME OR COMMAND",
        )

    with_client(url, work)


def _row(task: TaskView) -> tuple[str, ...]:
    run = task.last_run
    phase = f"{task.phase.value} ({task.reason.value})" if task.reason else task.phase.value
    took = ""
    if run is not None and run.started_s is not None and run.resolved_s is not None:
        took = format_duration(max(0.0, run.resolved_s - run.started_s))
    what = task.name or shlex.join(str(each) for each in task.definition.payload.get("command", ()))
    return (task.id, phase, what, at(task.created_s), took, str(len(task.runs)), run.worker if run else "")


app = verb_app(list_tasks)
