"""The life of a task, transition by transition."""

from dataclasses import dataclass
from typing import Any

import pytest

from corral.kernel.errors import Conflict, InvalidSpec
from corral.tasks.events import (
    AbortRun,
    CancelAsked,
    Claimed,
    ClockTicked,
    DependencyResolved,
    Effect,
    Event,
    Fact,
    ForgetTask,
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
from corral.tasks.machine import REPORTABLE, RUNS_MAX, TRANSITIONS, due_s, step, submitted
from corral.tasks.model import (
    Artifact,
    ArtifactKind,
    Phase,
    Reason,
    Requires,
    Resolved,
    RunCreated,
    TaskDefinition,
    TaskLife,
)

ANN, BOB = "wrk_ann", "wrk_bob"
A, B = "task_a", "task_b"


@dataclass
class Course:
    """A task on its way; ``effects`` are the last step's."""

    life: TaskLife
    effects: tuple[Effect, ...] = ()

    def then(self, event: Event, at_s: float) -> "Course":
        life, effects = step(self.life, event, now_s=at_s)
        return Course(life, effects)

    def asked(self, kind: type) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def kinds(self) -> list[str]:
        return [effect.kind for effect in self.effects if isinstance(effect, RecordEvent)]


def a_task(*, waits_for: tuple[str, ...] = (), failed: str = "", **fields: Any) -> Course:
    definition = TaskDefinition(payload={}, **{"retries": 2, "deadline_s": 1000.0, "expires_s": 100.0, **fields})
    return Course(*submitted(definition, waits_for=waits_for, failed=failed, now_s=0.0))


def running(worker: str = ANN, **fields: Any) -> Course:
    return a_task(**fields).then(Claimed(worker, 30.0), 1.0)


def completed() -> Resolved:
    return Resolved(at_s=5.0, phase=Phase.COMPLETED, exit_status=0)


def exception(reason: Reason) -> Resolved:
    return Resolved(at_s=5.0, phase=Phase.EXCEPTION, reason=reason)


def done() -> Course:
    return running().then(ResolvedReported(0, 1, completed()), 5.0)


def test_a_task_without_dependencies_is_pending_at_once() -> None:
    task = a_task()

    assert task.life.phase is Phase.PENDING
    assert [run.created for run in task.life.runs] == [RunCreated.SCHEDULED]
    assert task.asked(WakeClaimers)


def test_a_task_with_dependencies_has_no_run_until_they_let_it_go() -> None:
    task = a_task(waits_for=(A, B))

    one_left = task.then(DependencyResolved(A, Phase.COMPLETED), 1.0)
    free = one_left.then(DependencyResolved(B, Phase.COMPLETED), 2.0)

    assert (task.life.phase, task.life.runs) == (Phase.UNSCHEDULED, ())
    assert (one_left.life.phase, one_left.life.waits_for) == (Phase.UNSCHEDULED, (B,))
    assert free.life.phase is Phase.PENDING
    assert free.asked(WakeClaimers)


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.EXCEPTION, None])
def test_a_dependency_that_cannot_complete_any_more_resolves_the_task_at_once(phase: Phase | None) -> None:
    task = a_task(waits_for=(A, B)).then(DependencyResolved(A, phase), 1.0)

    assert (task.life.phase, task.life.reason) == (Phase.EXCEPTION, Reason.DEPENDENCY_FAILED)
    assert task.asked(TellDependents)


@pytest.mark.parametrize("phase", [Phase.COMPLETED, Phase.FAILED, Phase.EXCEPTION, None])
def test_a_task_that_requires_resolved_dependencies_goes_however_they_ended(phase: Phase | None) -> None:
    task = a_task(waits_for=(A,), requires=Requires.ALL_RESOLVED).then(DependencyResolved(A, phase), 1.0)

    assert task.life.phase is Phase.PENDING


@pytest.mark.parametrize(("name", "phase"), [(A, Phase.RUNNING), ("task_stranger", Phase.COMPLETED)])
def test_news_of_an_unresolved_task_or_of_a_stranger_change_nothing(name: str, phase: Phase) -> None:
    task = a_task(waits_for=(A,))

    assert step(task.life, DependencyResolved(name, phase), now_s=1.0) == (task.life, ())


def test_a_task_whose_dependency_had_failed_before_is_resolved_when_submitted() -> None:
    task = a_task(failed=A)

    assert (task.life.phase, task.life.reason) == (Phase.EXCEPTION, Reason.DEPENDENCY_FAILED)
    assert task.life.runs == ()


def test_a_claim_gives_a_lease_with_a_new_token() -> None:
    task = running()

    assert (task.life.phase, task.life.token, task.life.worker) == (Phase.RUNNING, 1, ANN)
    assert (task.life.runs[0].lease_until_s, task.life.runs[0].claimed_s) == (30.0, 1.0)


def test_a_running_task_cannot_be_claimed() -> None:
    with pytest.raises(Conflict, match="running cannot be claimed"):
        running().then(Claimed(BOB, 60.0), 2.0)


def test_a_claim_after_the_deadline_resolves_the_task_instead() -> None:
    task = a_task().then(Claimed(ANN, 2000.0), 1000.0)

    assert (task.life.phase, task.life.reason) == (Phase.EXCEPTION, Reason.DEADLINE_EXCEEDED)
    assert not task.asked(WriteAudit)


def test_a_reclaim_renews_the_lease_and_never_shortens_it() -> None:
    renewed = running().then(Reclaimed(0, 1, 40.0), 10.0)
    late = renewed.then(Reclaimed(0, 1, 35.0), 11.0)

    assert renewed.life.runs[0].lease_until_s == 40.0
    assert late.life.runs[0].lease_until_s == 40.0


@pytest.mark.parametrize(("run", "token"), [(0, 0), (0, 2), (1, 1), (-1, 1)])
def test_a_reclaim_under_another_token_or_run_is_refused(run: int, token: int) -> None:
    with pytest.raises(Conflict, match="is not held under token"):
        running().then(Reclaimed(run, token, 40.0), 10.0)


def test_the_start_is_kept_once_and_within_what_our_clock_allows() -> None:
    started = running().then(StartedReported(0, 1, 2.5), 3.0)
    again = started.then(StartedReported(0, 1, 2.9), 4.0)
    fast_clock = running().then(StartedReported(0, 1, 99.0), 3.0)
    slow_clock = running().then(StartedReported(0, 1, -99.0), 3.0)

    assert started.kinds() == ["started"]
    assert (again.life, again.effects) == (started.life, ())
    assert fast_clock.life.runs[0].started_s == 3.0
    assert slow_clock.life.runs[0].started_s == 1.0


def test_a_run_that_is_given_back_is_pending_again_and_used_up_no_retry() -> None:
    returned = running().then(ReturnedReported(0, 1), 3.0)

    assert returned.life.phase is Phase.PENDING
    assert (returned.life.runs[-1].worker, returned.life.runs[-1].lease_until_s) == ("", None)
    assert returned.life.retries_left == running().life.retries_left
    assert step(returned.life, ReturnedReported(0, 1), now_s=4.0) == (returned.life, ())


def test_a_run_that_was_started_cannot_be_given_back() -> None:
    started = running().then(StartedReported(0, 1, 2.5), 3.0)

    with pytest.raises(Conflict, match="run 0 was started"):
        started.then(ReturnedReported(0, 1), 4.0)


def test_an_end_tells_the_start_that_nobody_was_told_of() -> None:
    ended = running().then(ResolvedReported(0, 1, Resolved(at_s=3.0, phase=Phase.COMPLETED, started_s=2.5)), 3.0)

    assert ended.life.runs[-1].started_s == 2.5
    assert ended.kinds()[-2:] == ["started", "resolved"]


@pytest.mark.parametrize("phase", [Phase.COMPLETED, Phase.FAILED])
def test_a_reported_end_is_final_and_told_once(phase: Phase) -> None:
    report = Resolved(at_s=5.0, phase=phase, exit_status=0, argv=("true",), inputs=("b3:x",))

    task = running().then(ResolvedReported(0, 1, report), 5.0)

    assert (task.life.phase, task.life.reason, task.life.worker) == (phase, None, "")
    assert (task.life.resolved_s, task.life.expires_s) == (5.0, 105.0)
    assert task.asked(WriteAudit) == [WriteAudit(0, report)]
    assert task.asked(TellDependents)
    assert task.kinds() == ["resolved"]


def test_what_the_ledger_keeps_is_not_kept_twice() -> None:
    artifact = Artifact(name="a", kind=ArtifactKind.FILE, digest="b3:x")
    report = Resolved(at_s=5.0, phase=Phase.COMPLETED, artifacts=(artifact,), argv=("true",), inputs=("b3:x",))

    kept = running().then(ResolvedReported(0, 1, report), 5.0).life.runs[0].end

    assert kept is not None
    assert (kept.artifacts, kept.argv, kept.inputs) == ((), (), ())


def test_the_same_end_reported_again_is_accepted_and_changes_nothing() -> None:
    task = done()

    assert step(task.life, ResolvedReported(0, 1, completed()), now_s=9.0) == (task.life, ())


def test_another_end_of_the_same_run_is_refused() -> None:
    with pytest.raises(Conflict, match="run 0 already ended as completed"):
        done().then(ResolvedReported(0, 1, Resolved(at_s=5.0, phase=Phase.FAILED)), 9.0)


def test_a_start_that_comes_after_the_end_is_accepted_and_changes_nothing() -> None:
    task = done()

    assert step(task.life, StartedReported(0, 1, 2.0), now_s=9.0) == (task.life, ())


@pytest.mark.parametrize("reason", sorted(REPORTABLE))
def test_only_three_reasons_are_retried(reason: Reason) -> None:
    task = running().then(ResolvedReported(0, 1, exception(reason)), 5.0)

    retried = reason in (Reason.WORKER_SHUTDOWN, Reason.INTERMITTENT_TASK)
    assert task.life.phase is (Phase.PENDING if retried else Phase.EXCEPTION)
    assert task.life.reason is (None if retried else reason)
    assert task.life.retries_left == (1 if retried else 2)
    assert len(task.life.runs) == (2 if retried else 1)
    assert bool(task.asked(TellDependents)) is not retried


@pytest.mark.parametrize(
    ("reason", "created"),
    [(Reason.WORKER_SHUTDOWN, RunCreated.RETRY), (Reason.INTERMITTENT_TASK, RunCreated.TASK_RETRY)],
)
def test_a_retry_says_whose_wish_it_was(reason: Reason, created: RunCreated) -> None:
    task = running().then(ResolvedReported(0, 1, exception(reason)), 5.0)

    assert task.life.runs[1].created is created
    assert task.asked(WakeClaimers)


def test_without_retries_left_a_retried_reason_is_final() -> None:
    task = running(retries=0).then(ResolvedReported(0, 1, exception(Reason.WORKER_SHUTDOWN)), 5.0)

    assert (task.life.phase, task.life.reason) == (Phase.EXCEPTION, Reason.WORKER_SHUTDOWN)


def test_a_retried_report_repeated_is_accepted_while_the_next_run_goes_on() -> None:
    report = ResolvedReported(0, 1, exception(Reason.WORKER_SHUTDOWN))
    task = running().then(report, 5.0).then(Claimed(BOB, 40.0), 6.0)

    assert step(task.life, report, now_s=7.0) == (task.life, ())


@pytest.mark.parametrize(
    "report",
    [
        Resolved(at_s=1.0, phase=Phase.RUNNING),
        Resolved(at_s=1.0, phase=Phase.EXCEPTION),
        Resolved(at_s=1.0, phase=Phase.COMPLETED, reason=Reason.CANCELED),
        *(exception(reason) for reason in sorted(set(Reason) - REPORTABLE)),
    ],
)
def test_a_report_that_no_worker_may_make_is_refused(report: Resolved) -> None:
    with pytest.raises(InvalidSpec):
        running().then(ResolvedReported(0, 1, report), 5.0)


def test_a_worker_that_lost_its_lease_cannot_finish_the_task() -> None:
    held_by_bob = running(ANN).then(ClockTicked(), 30.0).then(Claimed(BOB, 60.0), 31.0)

    with pytest.raises(Conflict, match="is not held under token 1"):
        held_by_bob.then(ResolvedReported(0, 1, completed()), 32.0)
    with pytest.raises(Conflict, match="is not held under token 1"):
        held_by_bob.then(ResolvedReported(1, 1, completed()), 32.0)
    assert held_by_bob.life.token == 2


def test_a_lease_that_ends_gives_a_new_run() -> None:
    still = running().then(ClockTicked(), 29.9)
    task = running().then(ClockTicked(), 30.0)

    assert still.life.phase is Phase.RUNNING
    assert task.life.phase is Phase.PENDING
    assert (task.life.runs[0].reason, task.life.runs[1].created) == (Reason.CLAIM_EXPIRED, RunCreated.RETRY)
    assert task.asked(WriteAudit) == [WriteAudit(0, None)]


def test_a_lost_worker_gives_up_its_run_at_once() -> None:
    task = running().then(WorkerLost(ANN), 2.0)

    assert (task.life.phase, task.life.runs[0].reason) == (Phase.PENDING, Reason.CLAIM_EXPIRED)
    assert task.asked(WakeClaimers)


def test_the_loss_of_another_worker_changes_nothing() -> None:
    task = running()

    assert step(task.life, WorkerLost(BOB), now_s=2.0) == (task.life, ())


def test_a_task_that_loses_its_last_worker_without_retries_is_an_exception() -> None:
    task = running(retries=0).then(WorkerLost(ANN), 2.0)

    assert (task.life.phase, task.life.reason) == (Phase.EXCEPTION, Reason.CLAIM_EXPIRED)
    assert task.asked(TellDependents)


def test_a_deadline_resolves_a_task_that_waits_for_dependencies() -> None:
    task = a_task(waits_for=(A,)).then(ClockTicked(), 1000.0)

    assert (task.life.phase, task.life.reason) == (Phase.EXCEPTION, Reason.DEADLINE_EXCEEDED)


def test_a_deadline_resolves_a_running_task_and_has_the_run_killed() -> None:
    task = running().then(Reclaimed(0, 1, 1020.0), 990.0).then(ClockTicked(), 1000.0)

    assert (task.life.phase, task.life.reason) == (Phase.EXCEPTION, Reason.DEADLINE_EXCEEDED)
    assert task.asked(AbortRun) == [AbortRun(ANN, 0, 1)]
    assert task.life.worker == ANN


@pytest.mark.parametrize("task", [a_task(), a_task(waits_for=(A,)), running()])
def test_canceling_resolves_at_once_wherever_the_task_stands(task: Course) -> None:
    canceled = task.then(CancelAsked("a user"), 3.0)

    assert (canceled.life.phase, canceled.life.reason) == (Phase.EXCEPTION, Reason.CANCELED)
    assert canceled.asked(TellDependents)
    assert bool(canceled.asked(AbortRun)) is (task.life.phase is Phase.RUNNING)


def test_canceling_twice_is_canceling() -> None:
    task = running().then(CancelAsked("a user"), 3.0)

    assert step(task.life, CancelAsked("a user"), now_s=4.0) == (task.life, ())


def test_what_ended_otherwise_cannot_be_canceled() -> None:
    with pytest.raises(Conflict, match="completed cannot be canceled"):
        done().then(CancelAsked("a user"), 9.0)
    with pytest.raises(Conflict, match="dependency-failed"):
        a_task(failed=A).then(CancelAsked("a user"), 9.0)


def test_a_late_report_of_a_canceled_run_is_refused() -> None:
    task = running().then(CancelAsked("a user"), 3.0)

    with pytest.raises(Conflict):
        task.then(ResolvedReported(0, 1, completed()), 4.0)
    with pytest.raises(Conflict):
        task.then(StartedReported(0, 1, 3.5), 4.0)


def test_an_abort_is_remembered_until_the_lease_would_have_ended() -> None:
    task = running().then(CancelAsked("a user"), 3.0)

    assert task.life.abort is not None
    assert due_s(task.life) == 30.0
    assert task.then(ClockTicked(), 29.0).life.abort is not None
    assert task.then(ClockTicked(), 30.0).life.abort is None
    assert task.then(WorkerLost(ANN), 4.0).life.abort is None


def test_an_abort_gives_way_when_the_same_worker_runs_the_task_again() -> None:
    canceled = running().then(CancelAsked("a user"), 3.0)
    rerun = canceled.then(RerunAsked("a user", 2000.0, 2), 4.0)

    assert rerun.then(Claimed(ANN, 40.0), 5.0).life.abort is None
    assert rerun.then(Claimed(BOB, 40.0), 5.0).life.abort == canceled.life.abort


def test_a_rerun_starts_again_with_fresh_retries_and_a_fresh_deadline() -> None:
    task = done().then(RerunAsked("a user", 2000.0, 7), 50.0)

    assert task.life.phase is Phase.PENDING
    assert (task.life.retries_left, task.life.deadline_s, task.life.resolved_s) == (7, 2000.0, None)
    assert [run.created for run in task.life.runs] == [RunCreated.SCHEDULED, RunCreated.RERUN]
    assert task.then(Claimed(BOB, 80.0), 51.0).life.token == 2


def test_a_rerun_waits_for_dependencies_that_run_again() -> None:
    task = a_task(failed=A).then(RerunAsked("a user", 2000.0, 2, waits_for=(A,)), 50.0)

    freed = task.then(DependencyResolved(A, Phase.COMPLETED), 60.0)

    assert task.life.phase is Phase.UNSCHEDULED
    assert freed.life.phase is Phase.PENDING


def test_a_rerun_is_refused_while_a_required_dependency_is_not_complete() -> None:
    with pytest.raises(Conflict, match=f"needs {A}") as refused:
        a_task(failed=A).then(RerunAsked("a user", 2000.0, 2, failed=A), 50.0)
    assert refused.value.cure == f"Rerun {A} first."


def test_a_live_task_cannot_be_rerun() -> None:
    with pytest.raises(Conflict, match="running cannot be rerun"):
        running().then(RerunAsked("a user", 2000.0, 2), 50.0)


def test_runs_of_one_task_are_bounded() -> None:
    task = a_task()
    for number in range(RUNS_MAX):
        task = task.then(Claimed(ANN, 30.0), 1.0).then(ResolvedReported(number, number + 1, completed()), 2.0)
        if number < RUNS_MAX - 1:
            task = task.then(RerunAsked("a user", 2000.0, 2), 3.0)

    with pytest.raises(Conflict, match="submit it anew"):
        task.then(RerunAsked("a user", 2000.0, 2), 3.0)


def test_a_resolved_task_is_forgotten_when_it_expires() -> None:
    task = done()

    assert step(task.life, ClockTicked(), now_s=104.9) == (task.life, ())
    assert task.then(ClockTicked(), 105.0).asked(ForgetTask)


def test_the_next_instant_that_matters_is_the_earliest() -> None:
    assert due_s(a_task(waits_for=(A,)).life) == 1000.0
    assert due_s(a_task().life) == 1000.0
    assert due_s(running().life) == 30.0
    assert due_s(running(deadline_s=20.0).life) == 20.0
    assert due_s(done().life) == 105.0


@pytest.mark.parametrize("phase", list(Phase))
def test_what_the_table_does_not_list_is_refused(phase: Phase) -> None:
    life = {
        Phase.UNSCHEDULED: a_task(waits_for=(A,)),
        Phase.PENDING: a_task(),
        Phase.RUNNING: running(),
        Phase.COMPLETED: done(),
        Phase.FAILED: running().then(ResolvedReported(0, 1, Resolved(at_s=5.0, phase=Phase.FAILED)), 5.0),
        Phase.EXCEPTION: running().then(CancelAsked("a user"), 3.0),
    }[phase].life
    events: list[Fact] = [
        DependencyResolved(A, Phase.COMPLETED),
        Claimed(BOB, 60.0),
        Reclaimed(0, 1, 60.0),
        StartedReported(0, 1, 2.0),
        ResolvedReported(0, 1, completed()),
        WorkerLost(BOB),
        ClockTicked(),
        CancelAsked("a user"),
        RerunAsked("a user", 2000.0, 2),
    ]
    for event in events:
        if type(event) in TRANSITIONS[phase]:
            continue
        with pytest.raises(Conflict):
            step(life, event, now_s=6.0)  # type: ignore[arg-type]
