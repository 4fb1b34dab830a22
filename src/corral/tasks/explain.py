"""Why a task is where it is, in sentences: pure, from a view of the queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from corral.tasks.model import Phase, Reason, Requires, Run, Task
from corral.tasks.ports import TenantTerms, WorkerOffer

_NAMED_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known around a task.

    Attributes:
        dependencies: phases of the tasks that it waits for; one that is absent is forgotten.
        ahead: pending tasks of the tenant that are served before it.
        running: runs that the tenant holds.
        workers: everybody alive; None when nobody can tell.
    """

    task: Task
    now_s: float
    dependencies: Mapping[str, Phase]
    ahead: int
    running: int
    terms: TenantTerms
    workers: Sequence[WorkerOffer] | None


def explain(view: Situation) -> list[str]:
    """Sentences that say why the task is in its phase, the decisive one first."""
    life = view.task.life
    if life.phase is Phase.UNSCHEDULED:
        return _unscheduled(view)
    if life.phase is Phase.PENDING:
        return _pending(view)
    if life.phase is Phase.RUNNING:
        return _running(view)
    return _final(view)


def _unscheduled(view: Situation) -> list[str]:
    what = "complete" if view.task.life.requires is Requires.ALL_COMPLETED else "be resolved"
    waits = view.task.life.waits_for
    named = ", ".join(f"{name} ({_of(view.dependencies.get(name))})" for name in waits[:_NAMED_MAX])
    more = f" and {len(waits) - _NAMED_MAX} more" if len(waits) > _NAMED_MAX else ""
    return [f"It is unscheduled because it waits for {named}{more} to {what}."]


def _pending(view: Situation) -> list[str]:
    reasons = _no_worker(view)
    if view.running >= view.terms.max_running:
        reasons.append(
            f"It is pending because the tenant has {view.running} runs, and max_running is {view.terms.max_running}."
        )
    if view.ahead:
        ahead = "1 task of this tenant is" if view.ahead == 1 else f"{view.ahead} tasks of this tenant are"
        reasons.append(f"It is pending because {ahead} served before it.")
    if not reasons:
        reasons.append("It is pending because no slot has become free for it yet; it is the next of this tenant.")
    retries = [run for run in view.task.life.runs if run.phase is Phase.EXCEPTION and run.reason is not None]
    if retries:
        reasons.append(f"It was tried before: {_runs_text(retries)}.")
    return reasons


def _no_worker(view: Situation) -> list[str]:
    if view.workers is None:
        return []
    runtime = view.task.definition.runtime
    able = [worker for worker in view.workers if not runtime or runtime in worker.runtimes]
    if not view.workers:
        return ["It is pending because no worker is connected; start one with `corral worker`."]
    if not able:
        offered = ", ".join(sorted({name for worker in view.workers for name in worker.runtimes})) or "none"
        return [f'It is pending because no live worker offers the runtime "{runtime}"; offered: {offered}.']
    if all(worker.draining for worker in able):
        return ["It is pending because every worker that could run it is drained; see `corral worker undrain`."]
    if not any(worker.slots_free for worker in able if not worker.draining):
        total = sum(worker.slots for worker in able)
        return [f"It is pending because all {total} slots of the {len(able)} workers that could run it are busy."]
    return []


def _running(view: Situation) -> list[str]:
    life = view.task.life
    run = life.runs[-1]
    sentences = [f"It is running: run {len(life.runs) - 1} is held by {run.worker}."]
    if run.started_s is None:
        sentences.append("The command has not been started yet: the sandbox or the inputs are being prepared.")
    else:
        sentences.append(f"The command was started {max(0.0, view.now_s - run.started_s):.0f} s ago.")
    return sentences


def _final(view: Situation) -> list[str]:
    life = view.task.life
    run = life.runs[-1] if life.runs else None
    sentences = [_end(view, run)]
    if run is not None and run.end is not None:
        usage = run.end.usage
        if usage.warm:
            sentences.append("It got a warm sandbox.")
        elif usage.sandbox:
            sentences.append(f"It got a cold sandbox because {usage.cold_reason or 'no warm one was waiting'}.")
    if len(life.runs) > 1:
        sentences.append(f"It had {len(life.runs)} runs; before the last: {_runs_text(life.runs[:-1])}.")
    return sentences


def _end(view: Situation, run: Run | None) -> str:
    life = view.task.life
    said = f": {run.end.message.rstrip('.')}." if run is not None and run.end is not None and run.end.message else "."
    if life.phase is Phase.COMPLETED:
        return "It completed."
    if life.phase is Phase.FAILED:
        return f"It failed{_status(run, said)}{said}" if said != "." else f"It failed: {_how(run)}."
    match life.reason:
        case Reason.CANCELED:
            return "It is an exception because it was canceled."
        case Reason.DEADLINE_EXCEEDED:
            return f"It is an exception because its deadline passed {_where(run)}."
        case Reason.DEPENDENCY_FAILED:
            needed = ", ".join(life.waits_for[:_NAMED_MAX]) or "a dependency"
            return f"It is an exception because it needed {needed} to complete, and that did not happen."
        case Reason.CLAIM_EXPIRED:
            return "It is an exception because the last worker was lost, and no retries were left."
        case None:
            return "It is an exception."
    return f"It is an exception because its worker reported {life.reason.value}{said}"


def _status(run: Run | None, said: str) -> str:
    """The exit status, when what was said does not tell it."""
    status = run.end.exit_status if run is not None and run.end is not None else None
    if status is None or "exit status" in said:
        return ""
    return f" with exit status {status}" if status else " although its command ended with exit status 0"


def _how(run: Run | None) -> str:
    if run is None or run.end is None:
        return "its worker said so"
    if run.end.signal is not None:
        return f"the command was killed by signal {run.end.signal}"
    if run.end.exit_status:
        return f"the command ended with exit status {run.end.exit_status}"
    return f"its end was {run.end.end or 'not told'}"


def _where(run: Run | None) -> str:
    if run is None:
        return "while it waited for its dependencies"
    return "while it ran" if run.worker else "while it waited for a worker"


def _runs_text(runs: Sequence[Run]) -> str:
    """The last ways in which runs ended; those in a row that ended alike together."""
    alike = [(text, len(list(same))) for text, same in groupby(map(_run_text, runs))]
    return "; ".join(text if count == 1 else f"{text} ({count} times)" for text, count in alike[-_NAMED_MAX:])


def _run_text(run: Run) -> str:
    reason = run.reason.value if run.reason is not None else run.phase.value
    return f"{reason} on {run.worker}" if run.worker else reason


def _of(phase: Phase | None) -> str:
    return phase.value if phase is not None else "forgotten"
