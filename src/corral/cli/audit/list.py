"""`corral audit list`."""

import shlex
from typing import Annotated, Any

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Limit, Url
from corral.cli.output import at, print_json, print_table
from corral.cli.running import with_client
from corral.client import Corral
from corral.kernel.units import format_duration


def list_audit(
    task: Annotated[str, typer.Option("--task", help="Only runs of this task.")] = "",
    limit: Limit = 20,
    after: Annotated[str, typer.Option("--after", help="Go on after this page's cursor.")] = "",
    json: Json = False,
    url: Url = "",
) -> None:
    """One row per run, newest first."""

    async def work(corral: Corral) -> None:
        page = await corral.records.audit(task_id=task, limit=limit, after=after)
        if json:
            print_json(page)
            return
        print_table(
            ("TASK", "RUN", "RESULT", "EXIT", "ENDED", "TOOK", "SANDBOX", "WORKER", "COMMAND"),
            [_row(row) for row in page.rows],
            empty="no runs yet",
            optional=("WORKER", "SANDBOX", "TOOK", "ENDED"),
            cut="COMMAND",
        )

    with_client(url, work)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    result = str(row.get("phase", ""))
    if row.get("reason"):
        result += f" ({row['reason']})"
    status = row.get("exit_status")
    wall_s, cold = float(row.get("wall_s") or 0.0), str(row.get("cold_reason") or "")
    return (
        str(row.get("task_id", "")),
        str(row.get("run", "")),
        result,
        "" if status is None else str(status),
        at(row.get("resolved_s")),
        format_duration(wall_s) if wall_s else "",  # a worker that was lost could not tell
        "warm" if row.get("warm") else f"cold: {cold}" if cold else "",
        str(row.get("worker_id", "")),
        shlex.join(str(each) for each in row.get("argv", ())),
    )


app = verb_app(list_audit)
