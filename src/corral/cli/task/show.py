"""`corral task show`."""

import shlex

from corral.cli.lazy import verb_app
from corral.cli.options import Json, TaskId, Url
from corral.cli.output import at, print_fields, print_json, print_table
from corral.cli.running import with_client
from corral.client import Corral, RunView, TaskView
from corral.kernel.units import format_duration, format_size


def show(task_id: TaskId, json: Json = False, url: Url = "") -> None:
    """Show one task with its runs."""

    async def work(corral: Corral) -> None:
        task = await corral.tasks.get(task_id)
        if json:
            print_json(task)
            return
        print_fields(_fields(task))
        print_table(
            ("RUN", "PHASE", "WORKER", "CLAIMED", "TOOK", "EXIT", "MEMORY", "SANDBOX", "MESSAGE"),
            [_row(run) for run in task.runs],
            empty="no runs yet",
            optional=("CLAIMED", "WORKER"),
        )

    with_client(url, work)


def _fields(task: TaskView) -> list[tuple[str, str]]:
    command = task.definition.payload.get("command", ())
    return [
        ("task", task.id),
        ("name", task.name),
        ("phase", f"{task.phase.value} ({task.reason.value})" if task.reason else task.phase.value),
        ("command", shlex.join(str(each) for each in command)),
        ("group", task.group if task.group != task.id else ""),
        ("priority", task.definition.priority.value),
        ("waits for", ", ".join(task.unmet)),
        ("created", at(task.created_s)),
        ("deadline", at(task.deadline_s)),
        ("expires", at(task.expires_s)),
        ("retries left", str(task.retries_left)),
        ("metadata", ", ".join(f"{key}={value}" for key, value in task.definition.metadata.items())),
    ]


def _row(run: RunView) -> tuple[str, ...]:
    phase = f"{run.phase.value} ({run.reason.value})" if run.reason else run.phase.value
    took = ""
    if run.started_s is not None and run.resolved_s is not None:
        took = format_duration(max(0.0, run.resolved_s - run.started_s))
    ended = "" if run.exit_status is None else str(run.exit_status)
    if run.signal is not None:
        ended = f"signal {run.signal}"
    memory = format_size(run.usage.memory_peak_bytes) if run.usage.memory_peak_bytes else ""
    sandbox = "" if not run.usage.sandbox else "warm" if run.usage.warm else f"cold: {run.usage.cold_reason}"
    return (str(run.run), phase, run.worker, at(run.claimed_s), took, ended, memory, sandbox, run.message)


app = verb_app(show)
