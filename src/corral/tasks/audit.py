"""What the ledger keeps of a run: a pure map."""

from typing import Any

from corral.ledger.model import AuditRow
from corral.tasks.model import Resolved, Run, RunUsage, TaskDefinition

_NOTHING_USED = RunUsage()


def audit_row(
    tenant: str, task_id: str, number: int, run: Run, report: Resolved | None, asked: TaskDefinition | None
) -> AuditRow:
    """The audit row of an ended run; ``report`` is the worker's, None when the queue ended it.

    What a worker did not tell, because it was lost or the run was taken from it, is taken from what was ``asked``.
    """
    usage = report.usage if report is not None else _NOTHING_USED
    payload: dict[str, Any] = asked.payload if asked is not None else {}
    return AuditRow(
        task_id=task_id,
        run=number,
        tenant=tenant,
        phase=run.phase.value,
        reason=run.reason.value if run.reason is not None else "",
        worker_id=run.worker,
        created_s=run.created_s,
        started_s=run.started_s,
        resolved_s=run.resolved_s or run.created_s,
        sandbox=usage.sandbox,
        runtime=usage.runtime or (asked.runtime if asked is not None else ""),
        image=(report.image if report else "") or _text(payload.get("image")),
        argv=(report.argv if report else ()) or _texts(payload.get("command")),
        env_digest=report.env_digest if report else "",
        inputs=report.inputs if report else (),
        artifacts=tuple((artifact.name, artifact.digest) for artifact in report.artifacts) if report else (),
        log=run.log or (report.log if report else ""),
        log_bytes=run.log_bytes or (report.log_bytes if report else 0),
        end=report.end if report else "",
        exit_status=report.exit_status if report else None,
        signal=report.signal if report else None,
        message=report.message if report else "the queue ended the run",
        warm=usage.warm,
        cold_reason=usage.cold_reason,
        acquire_s=usage.acquire_s,
        wall_s=usage.wall_s,
        cpu_user_s=usage.cpu_user_s,
        cpu_system_s=usage.cpu_system_s,
        memory_peak_bytes=usage.memory_peak_bytes,
    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_text(each) for each in value) if isinstance(value, list | tuple) else ()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
