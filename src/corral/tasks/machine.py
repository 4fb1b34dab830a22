"""The life of a task, decided purely: ``step(life, event, now_s=…)`` gives the next life and the effects to carry out.

::

    unscheduled ──► pending ──► running ──► completed | failed | exception(reason)
                       ▲           │
                       └── retry ──┘        a retry is a new run; a rerun starts again from a final phase

Rules. A report counts only under the token of the run that it names; the same end reported again is accepted and
changes nothing; everything else is a ``Conflict``. Retries follow worker-shutdown, claim-expired and
intermittent-task only. A deadline and a cancellation resolve at once, whatever the worker does, and leave an ``abort``
for it. A dependency that can no longer become what the task requires resolves the task at once (dependency-failed):
waiting for the deadline would only hide the news, and both can be rerun. Every event may be repeated, may be late and
may be stale; nothing here looks at a clock or at anything outside its arguments.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from corral.kernel.errors import Conflict, InvalidSpec
from corral.tasks.events import (
    AbortRun,
    AmendAudit,
    CancelAsked,
    Claimed,
    ClockTicked,
    DependencyResolved,
    Effect,
    Event,
    Fact,
    ForgetTask,
    LogFinished,
    Outcome,
    Reclaimed,
    RecordEvent,
    RerunAsked,
    ResolvedReported,
    ReturnedReported,
    StartedReported,
    TellDependents,
    WakeClaimers,
    WorkerLost,
    WriteAudit,
)
from corral.tasks.model import (
    Abort,
    Phase,
    Reason,
    Requires,
    Resolved,
    Run,
    RunCreated,
    TaskDefinition,
    TaskLife,
)

RUNS_MAX: Final = 100
"""Runs of one task, reruns included: a life is read and written whole."""

REPORTABLE: Final = frozenset(set(Reason) - {Reason.CLAIM_EXPIRED, Reason.DEADLINE_EXCEEDED, Reason.DEPENDENCY_FAILED})
"""Reasons that a worker may report; the queue finds the others itself."""


# The table of legal events: what each may lead to. Drawn in docs/states/tasks.md.

_ALL_ENDS: Final = (Phase.COMPLETED, Phase.FAILED, Phase.EXCEPTION)

TRANSITIONS: Final[dict[Phase, dict[type[Fact], tuple[Phase, ...]]]] = {
    Phase.UNSCHEDULED: {
        DependencyResolved: (Phase.UNSCHEDULED, Phase.PENDING, Phase.EXCEPTION),
        StartedReported: (Phase.UNSCHEDULED,),
        ReturnedReported: (Phase.UNSCHEDULED,),
        ResolvedReported: (Phase.UNSCHEDULED,),
        LogFinished: (Phase.UNSCHEDULED,),
        WorkerLost: (Phase.UNSCHEDULED,),
        ClockTicked: (Phase.UNSCHEDULED, Phase.EXCEPTION),
        CancelAsked: (Phase.EXCEPTION,),
    },
    Phase.PENDING: {
        DependencyResolved: (Phase.PENDING,),
        Claimed: (Phase.RUNNING, Phase.EXCEPTION),
        StartedReported: (Phase.PENDING,),
        ReturnedReported: (Phase.PENDING,),
        ResolvedReported: (Phase.PENDING,),
        LogFinished: (Phase.PENDING,),
        WorkerLost: (Phase.PENDING,),
        ClockTicked: (Phase.PENDING, Phase.EXCEPTION),
        CancelAsked: (Phase.EXCEPTION,),
    },
    Phase.RUNNING: {
        DependencyResolved: (Phase.RUNNING,),
        Reclaimed: (Phase.RUNNING,),
        StartedReported: (Phase.RUNNING,),
        ReturnedReported: (Phase.RUNNING, Phase.PENDING),
        ResolvedReported: (Phase.RUNNING, Phase.PENDING, *_ALL_ENDS),
        LogFinished: (Phase.RUNNING,),
        WorkerLost: (Phase.RUNNING, Phase.PENDING, Phase.EXCEPTION),
        ClockTicked: (Phase.RUNNING, Phase.PENDING, Phase.EXCEPTION),
        CancelAsked: (Phase.EXCEPTION,),
    },
    **{
        end: {
            DependencyResolved: (end,),
            StartedReported: (end,),
            ReturnedReported: (end,),
            ResolvedReported: (end,),
            LogFinished: (end,),
            WorkerLost: (end,),
            ClockTicked: (end,),
            RerunAsked: (Phase.UNSCHEDULED, Phase.PENDING),
        }
        for end in _ALL_ENDS
    },
}
TRANSITIONS[Phase.EXCEPTION][CancelAsked] = (Phase.EXCEPTION,)  # canceling twice is canceling


def submitted(definition: TaskDefinition, *, waits_for: tuple[str, ...], failed: str, now_s: float) -> Outcome:
    """The first life of a task. ``waits_for`` are its unmet dependencies, ``failed`` one that failed or ""."""
    life = TaskLife(
        phase=Phase.UNSCHEDULED,
        created_s=now_s,
        deadline_s=now_s + definition.deadline_s,
        expires_after_s=definition.expires_s,
        retries_left=definition.retries,
        requires=definition.requires,
        waits_for=waits_for,
    )
    told = RecordEvent("submitted", "The task was submitted.")
    if failed:
        after, effects = _dependency_failed(life, failed, now_s)
        return after, (told, *effects)
    if waits_for:
        noun = "dependency" if len(waits_for) == 1 else "dependencies"
        return life, (told, RecordEvent("unscheduled", f"It waits for {len(waits_for)} {noun}."))
    return _new_run(life, RunCreated.SCHEDULED, now_s), (told, WakeClaimers())


def step(life: TaskLife, event: Event, *, now_s: float) -> Outcome:
    """What ``event`` makes of ``life`` at ``now_s`` (Unix seconds).

    Raises:
        Conflict: the event is not legal in this phase, or its token is stale; nothing changes.
        InvalidSpec: a report that no worker may make.
    """
    if type(event) not in TRANSITIONS[life.phase]:
        raise Conflict(
            f"a task that is {_phase_text(life)} cannot be {_ASKED.get(type(event), 'changed so')}",
            phase=life.phase.value,
            event=type(event).__name__,
        )
    return _STEPS[type(event)](life, event, now_s)


def due_s(life: TaskLife) -> float | None:
    """The next instant at which the clock matters to this task; None when it never does."""
    instants: list[float] = []
    if life.abort is not None:
        instants.append(life.abort.until_s)
    if life.phase.final:
        if life.expires_s is not None:
            instants.append(life.expires_s)
        return min(instants, default=None)
    instants.append(life.deadline_s)
    if life.phase is Phase.RUNNING and (lease_until_s := life.runs[-1].lease_until_s) is not None:
        instants.append(lease_until_s)
    return min(instants)


def _on_dependency(life: TaskLife, event: DependencyResolved, now_s: float) -> Outcome:
    if life.phase is not Phase.UNSCHEDULED or event.task_id not in life.waits_for:
        return life, ()
    if event.phase is not None and not event.phase.final:
        return life, ()
    if life.requires is Requires.ALL_COMPLETED and event.phase is not Phase.COMPLETED:
        return _dependency_failed(life, event.task_id, now_s)
    left = tuple(needed for needed in life.waits_for if needed != event.task_id)
    life = replace(life, waits_for=left)
    text = f"{event.task_id} is resolved; {len(left)} left to wait for." if left else f"{event.task_id} is resolved."
    met = RecordEvent("dependency-met", text, facts={"dependency": event.task_id})
    if left:
        return life, (met,)
    created = RunCreated.RERUN if life.runs else RunCreated.SCHEDULED
    return _new_run(life, created, now_s), (met, WakeClaimers())


def _on_claim(life: TaskLife, event: Claimed, now_s: float) -> Outcome:
    if now_s >= life.deadline_s:
        return _ended_by_queue(life, Reason.DEADLINE_EXCEEDED, "The deadline passed.", now_s)
    number, token = len(life.runs) - 1, life.token + 1
    run = replace(
        life.runs[-1],
        phase=Phase.RUNNING,
        worker=event.worker,
        token=token,
        claimed_s=now_s,
        lease_until_s=event.lease_until_s,
    )
    waited_s = max(0.0, now_s - run.created_s)
    text = f"Run {number} was claimed by {event.worker} after {waited_s:.3f} s in the queue."
    # An older run that is still to be killed keeps its order only when another worker got it.
    abort = life.abort if life.abort is not None and life.abort.worker != event.worker else None
    life = replace(life, phase=Phase.RUNNING, token=token, runs=(*life.runs[:-1], run), abort=abort)
    return life, (RecordEvent("claimed", text, number, event.worker, {"token": token, "waited_s": waited_s}),)


def _on_reclaim(life: TaskLife, event: Reclaimed, now_s: float) -> Outcome:
    run = _live_run(life, event.run, event.token)
    if run is None:
        raise _stale(life, event.run, event.token)
    later_s = max(event.lease_until_s, run.lease_until_s or now_s)
    return _with_run(life, replace(run, lease_until_s=later_s)), ()


def _on_started(life: TaskLife, event: StartedReported, now_s: float) -> Outcome:
    run = _live_run(life, event.run, event.token)
    if run is None:
        _reported_run(life, event.run, event.token)  # late, but true
        return life, ()
    run, told = _with_start(run, event.run, event.at_s, now_s)
    return _with_run(life, run), told


def _with_start(run: Run, number: int, at_s: float | None, now_s: float) -> tuple[Run, tuple[Effect, ...]]:
    """The run with its start, and the line about it; as it is when that is known already, or is not told."""
    if run.started_s is not None or at_s is None:
        return run, ()
    at_s = min(max(at_s, run.claimed_s or now_s), now_s)  # two machines, two clocks
    text = f"The command of run {number} was started on {run.worker}."
    return replace(run, started_s=at_s), (RecordEvent("started", text, number, run.worker),)


def _on_returned(life: TaskLife, event: ReturnedReported, now_s: float) -> Outcome:
    """Nothing was done, so nothing is used up; whoever claims the run next gets a token of his own."""
    run = _live_run(life, event.run, event.token)
    if run is None:
        return life, ()  # a repeat, or it is not the worker's any more: as wanted
    if run.started_s is not None:
        raise Conflict(f"run {event.run} was started, so it cannot be given back", run=event.run, token=event.token)
    waiting = replace(run, phase=Phase.PENDING, worker="", token=0, claimed_s=None, lease_until_s=None)
    text = f"Run {event.run} was given back by {run.worker}, which had no room for it."
    life = replace(_with_run(life, waiting), phase=Phase.PENDING)
    return life, (RecordEvent("returned", text, event.run, run.worker), WakeClaimers())


def _on_resolved(life: TaskLife, event: ResolvedReported, now_s: float) -> Outcome:
    report = event.report
    _check_report(report)
    run = _live_run(life, event.run, event.token)
    if run is None:
        past = _reported_run(life, event.run, event.token)
        if (past.phase, past.reason) != (report.phase, report.reason):
            raise Conflict(
                f"run {event.run} already ended as {_end_text(past.phase, past.reason)}",
                run=event.run,
                token=event.token,
            )
        return life, ()
    run, start = _with_start(run, event.run, report.started_s, now_s)
    kept = replace(report, artifacts=(), inputs=(), argv=())
    ended = replace(run, phase=report.phase, reason=report.reason, resolved_s=now_s, lease_until_s=None, end=kept)
    life = _with_run(life, ended)
    audit = WriteAudit(event.run, report)
    text = f"Run {event.run} {_ended_text(report)}"
    facts = {
        "phase": report.phase.value,
        "reason": report.reason.value if report.reason is not None else "",
        "exit_status": report.exit_status,
        "signal": report.signal,
        "end": report.end,
        "warm": report.usage.warm,
    }
    if report.reason is not None and report.reason.retried and life.retries_left > 0:
        told = RecordEvent(f"run-{report.reason.value}", text, event.run, run.worker, facts)
        created = RunCreated.TASK_RETRY if report.reason is Reason.INTERMITTENT_TASK else RunCreated.RETRY
        after, effects = _retried(life, created, now_s)
        return after, (*start, told, audit, *effects)
    told = RecordEvent("resolved", text, event.run, run.worker, facts)
    return _final(life, report.phase, report.reason, now_s), (*start, told, audit, TellDependents())


def _on_log_finished(life: TaskLife, event: LogFinished, now_s: float) -> Outcome:
    """The first log stands: one that a late worker writes after it is not this run's."""
    if not 0 <= event.run < len(life.runs) or life.runs[event.run].log:
        return life, ()
    run = replace(life.runs[event.run], log=event.digest, log_bytes=event.log_bytes)
    life = replace(life, runs=(*life.runs[: event.run], run, *life.runs[event.run + 1 :]))
    return life, ((AmendAudit(event.run),) if run.phase.final else ())


def _on_worker_lost(life: TaskLife, event: WorkerLost, now_s: float) -> Outcome:
    if life.abort is not None and life.abort.worker == event.worker:
        life = replace(life, abort=None)
    if life.phase is not Phase.RUNNING or life.runs[-1].worker != event.worker:
        return life, ()
    return _lease_ended(life, f"{event.worker} was lost, and its lease with it", now_s)


def _on_tick(life: TaskLife, event: ClockTicked, now_s: float) -> Outcome:
    if life.abort is not None and now_s >= life.abort.until_s:
        life = replace(life, abort=None)
    if life.phase.final:
        return (life, (ForgetTask(),)) if life.expires_s is not None and now_s >= life.expires_s else (life, ())
    if now_s >= life.deadline_s:
        return _ended_by_queue(life, Reason.DEADLINE_EXCEEDED, "The deadline passed.", now_s)
    if life.phase is Phase.RUNNING:
        run = life.runs[-1]
        if run.lease_until_s is not None and now_s >= run.lease_until_s:
            return _lease_ended(life, f"the lease of {run.worker} ended without being renewed", now_s)
    return life, ()


def _on_cancel(life: TaskLife, event: CancelAsked, now_s: float) -> Outcome:
    if life.phase is Phase.EXCEPTION:
        if life.reason is Reason.CANCELED:
            return life, ()
        raise Conflict(f"a task that is {_phase_text(life)} cannot be canceled", phase=life.phase.value)
    return _ended_by_queue(life, Reason.CANCELED, f"It was canceled by {event.actor}.", now_s)


def _on_rerun(life: TaskLife, event: RerunAsked, now_s: float) -> Outcome:
    if len(life.runs) >= RUNS_MAX:
        raise Conflict(f"the task already had {RUNS_MAX} runs, and more are not kept; submit it anew", runs=RUNS_MAX)
    if event.failed and life.requires is Requires.ALL_COMPLETED:
        raise Conflict(
            f"the task needs {event.failed}, which did not complete",
            cure=f"Rerun {event.failed} first.",
            dependency=event.failed,
        )
    told = RecordEvent("rerun", f"A rerun was asked for by {event.actor}.")
    life = replace(
        life,
        phase=Phase.UNSCHEDULED,
        reason=None,
        deadline_s=event.deadline_s,
        retries_left=event.retries,
        waits_for=event.waits_for,
        resolved_s=None,
        expires_s=None,
    )
    if event.waits_for:
        return life, (told,)
    return _new_run(life, RunCreated.RERUN, now_s), (told, WakeClaimers())


def _lease_ended(life: TaskLife, cause: str, now_s: float) -> Outcome:
    number, run = len(life.runs) - 1, life.runs[-1]
    ended = replace(run, phase=Phase.EXCEPTION, reason=Reason.CLAIM_EXPIRED, resolved_s=now_s, lease_until_s=None)
    told = RecordEvent("run-claim-expired", f"Run {number} ended: {cause}.", number, run.worker)
    life = _with_run(life, ended)
    if life.retries_left > 0:
        after, effects = _retried(life, RunCreated.RETRY, now_s)
    else:
        after, effects = _exception(life, Reason.CLAIM_EXPIRED, "No retries are left.", now_s)
    return after, (told, WriteAudit(number, None), *effects)


def _ended_by_queue(life: TaskLife, reason: Reason, text: str, now_s: float) -> Outcome:
    """Resolve the task now, and the run with it; a worker that holds the run must kill it."""
    effects: list[Effect] = []
    if life.phase in (Phase.PENDING, Phase.RUNNING):
        number, run = len(life.runs) - 1, life.runs[-1]
        ended = replace(run, phase=Phase.EXCEPTION, reason=reason, resolved_s=now_s, lease_until_s=None)
        life = _with_run(life, ended)
        if run.lease_until_s is not None:
            abort = Abort(worker=run.worker, run=number, token=run.token, until_s=run.lease_until_s)
            life = replace(life, abort=abort)
            effects += [AbortRun(run.worker, number, run.token), WriteAudit(number, None)]
    after, told = _exception(life, reason, text, now_s)
    return after, (*told, *effects)


def _dependency_failed(life: TaskLife, dependency: str, now_s: float) -> Outcome:
    return _exception(life, Reason.DEPENDENCY_FAILED, f"It needed {dependency} to complete, which did not.", now_s)


def _final(life: TaskLife, phase: Phase, reason: Reason | None, now_s: float) -> TaskLife:
    return replace(life, phase=phase, reason=reason, resolved_s=now_s, expires_s=now_s + life.expires_after_s)


def _exception(life: TaskLife, reason: Reason, text: str, now_s: float) -> Outcome:
    """The task ends without a report."""
    number = len(life.runs) - 1 if life.runs else None
    told = RecordEvent("resolved", text, number, facts={"phase": Phase.EXCEPTION.value, "reason": reason.value})
    return _final(life, Phase.EXCEPTION, reason, now_s), (told, TellDependents())


def _retried(life: TaskLife, created: RunCreated, now_s: float) -> Outcome:
    life = _new_run(replace(life, retries_left=life.retries_left - 1), created, now_s)
    noun = "retry is" if life.retries_left == 1 else "retries are"
    text = f"Run {len(life.runs) - 1} is pending; {life.retries_left} further {noun} left."
    return life, (RecordEvent("retried", text, len(life.runs) - 1), WakeClaimers())


def _new_run(life: TaskLife, created: RunCreated, now_s: float) -> TaskLife:
    return replace(life, phase=Phase.PENDING, runs=(*life.runs, Run(created=created, created_s=now_s)))


def _with_run(life: TaskLife, run: Run) -> TaskLife:
    return replace(life, runs=(*life.runs[:-1], run))


def _live_run(life: TaskLife, number: int, token: int) -> Run | None:
    """The running run, when it is this one under this token."""
    if life.phase is not Phase.RUNNING or number != len(life.runs) - 1 or life.runs[-1].token != token:
        return None
    return life.runs[-1]


def _reported_run(life: TaskLife, number: int, token: int) -> Run:
    """A run that ended by a report under this token. Raises Conflict when there is none."""
    if not 0 <= number < len(life.runs) or life.runs[number].token != token or life.runs[number].end is None:
        raise _stale(life, number, token)
    return life.runs[number]


def _stale(life: TaskLife, number: int, token: int) -> Conflict:
    return Conflict(
        f"run {number} is not held under token {token}: the task is {_phase_text(life)}, at token {life.token}",
        run=number,
        token=token,
        phase=life.phase.value,
    )


def _check_report(report: Resolved) -> None:
    if not report.phase.final:
        raise InvalidSpec(f"report: a run ends as completed, failed or exception, not {report.phase.value}")
    if (report.phase is Phase.EXCEPTION) != (report.reason is not None):
        raise InvalidSpec("report: an exception has a reason, and nothing else has one")
    if report.reason is not None and report.reason not in REPORTABLE:
        raise InvalidSpec(f"report: {report.reason.value} is found by the queue, a worker cannot report it")


def _end_text(phase: Phase, reason: Reason | None) -> str:
    return phase.value if reason is None else f"{phase.value} ({reason.value})"


def _phase_text(life: TaskLife) -> str:
    return _end_text(life.phase, life.reason)


def _ended_text(report: Resolved) -> str:
    text = {Phase.COMPLETED: "completed", Phase.FAILED: "failed"}.get(report.phase, "ended")
    if report.reason is not None:
        text += f" as an exception ({report.reason.value})"
    if report.exit_status is not None:
        text += f" with exit status {report.exit_status}"
    elif report.signal is not None:
        text += f" by signal {report.signal}"
    return f"{text}: {report.message}" if report.message else f"{text}."


_ASKED: Final[dict[type[Fact], str]] = {
    Claimed: "claimed",
    Reclaimed: "reclaimed",
    CancelAsked: "canceled",
    RerunAsked: "rerun",
}
_STEPS: Final[dict[type[Fact], Callable[[TaskLife, Any, float], Outcome]]] = {
    DependencyResolved: _on_dependency,
    Claimed: _on_claim,
    Reclaimed: _on_reclaim,
    StartedReported: _on_started,
    ReturnedReported: _on_returned,
    ResolvedReported: _on_resolved,
    LogFinished: _on_log_finished,
    WorkerLost: _on_worker_lost,
    ClockTicked: _on_tick,
    CancelAsked: _on_cancel,
    RerunAsked: _on_rerun,
}
