"""A task in a hostile world: messages repeated, late and stale, clocks that jump, workers that die."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corral.kernel.errors import Conflict, InvalidSpec
from corral.tasks.events import (
    AbortRun,
    CancelAsked,
    Claimed,
    ClockTicked,
    DependencyResolved,
    Effect,
    Event,
    ForgetTask,
    Reclaimed,
    RerunAsked,
    ResolvedReported,
    ReturnedReported,
    StartedReported,
    TellDependents,
    WakeClaimers,
    WorkerLost,
    WriteAudit,
)
from corral.tasks.machine import TRANSITIONS, due_s, step, submitted
from corral.tasks.model import Phase, Reason, Requires, Resolved, Run, RunCreated, TaskDefinition, TaskLife

LEASE_S, DEADLINE_S, RETRIES = 10.0, 500.0, 3
WORKERS = ("ann", "bob", "eve")
NEEDS = ("task_a", "task_b")
ENDS = (
    (Phase.COMPLETED, None),
    (Phase.FAILED, None),
    (Phase.EXCEPTION, Reason.WORKER_SHUTDOWN),
    (Phase.EXCEPTION, Reason.INTERMITTENT_TASK),
    (Phase.EXCEPTION, Reason.MALFORMED_PAYLOAD),
)


@dataclass(frozen=True)
class Held:
    """What a worker believes to hold."""

    worker: str
    run: int
    token: int


class HostileWorld(RuleBasedStateMachine):
    """``life`` is the truth; ``held`` grows only, so every claim ever made can still speak."""

    @initialize(needs=st.lists(st.sampled_from(NEEDS), unique=True), requires=st.sampled_from(Requires))
    def submit(self, needs: list[str], requires: Requires) -> None:
        definition = TaskDefinition(
            payload={}, requires=requires, retries=RETRIES, deadline_s=DEADLINE_S, expires_s=1e9
        )
        self.now_s = 0.0
        self.life: TaskLife
        self.life, effects = submitted(definition, waits_for=tuple(needs), failed="", now_s=self.now_s)
        self.needs = set(needs)
        self.held: list[Held] = []
        self.tokens = [0]
        self.endings = 0
        self.reruns = 0
        self.audited: list[int] = []
        self.aborted: set[tuple[int, int]] = set()
        self._count(effects)

    def _step(self, event: Event) -> bool:
        before = self.life
        try:
            after, effects = step(before, event, now_s=self.now_s)
        except Conflict:
            return False
        assert after.phase in TRANSITIONS[before.phase][type(event)]
        if before.phase.final and not isinstance(event, RerunAsked):
            assert (after.phase, after.reason, after.runs) == (before.phase, before.reason, before.runs)
            assert not [effect for effect in effects if not isinstance(effect, ForgetTask)]
        for old, new in zip(before.runs, after.runs, strict=False):
            if old.phase.final:
                assert new == old, "a run that ended never changes"
        if after.phase is Phase.PENDING and before.phase is not Phase.PENDING:
            assert any(isinstance(effect, WakeClaimers) for effect in effects)
        if len(after.runs) > len(before.runs) and after.runs[-1].created in (RunCreated.RETRY, RunCreated.TASK_RETRY):
            assert after.retries_left == before.retries_left - 1
        self.life = after
        self.tokens.append(after.token)
        self._count(effects)
        return True

    def _count(self, effects: tuple[Effect, ...]) -> None:
        self.endings += sum(isinstance(effect, TellDependents) for effect in effects)
        self.audited += [effect.run for effect in effects if isinstance(effect, WriteAudit)]
        self.aborted |= {(effect.run, effect.token) for effect in effects if isinstance(effect, AbortRun)}

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, LEASE_S, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(seconds=st.sampled_from([1.0, 50.0]))
    def the_clock_jumps_back(self, seconds: float) -> None:
        self.now_s -= seconds

    @rule()
    def the_sweeper_looks(self) -> None:
        assert self._step(ClockTicked())
        if not self.life.phase.final:
            due = due_s(self.life)
            assert due is not None
            assert due > self.now_s, "after a tick nothing that was due is left"

    @rule(name=st.sampled_from((*NEEDS, "task_stranger")), phase=st.sampled_from((*Phase, None)))
    def a_task_is_resolved(self, name: str, phase: Phase | None) -> None:
        assert self._step(DependencyResolved(name, phase))

    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_claims(self, worker: str) -> None:
        if self._step(Claimed(worker, self.now_s + LEASE_S)) and self.life.phase is Phase.RUNNING:
            self.held.append(Held(worker, len(self.life.runs) - 1, self.life.token))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def any_claim_ever_made_is_renewed(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        accepted = self._step(Reclaimed(held.run, held.token, self.now_s + LEASE_S))
        assert accepted is self._is_current(held)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def any_claim_ever_made_starts(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        self._step(StartedReported(held.run, held.token, self.now_s))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def any_claim_ever_made_is_given_back(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        before = self.life
        current = self._is_current(held)
        accepted = self._step(ReturnedReported(held.run, held.token))
        if not current:
            assert self.life == before
        elif before.runs[-1].started_s is None:
            assert accepted
            assert self.life.phase is Phase.PENDING
            assert self.life.retries_left == before.retries_left, "nothing was done, so nothing is used up"
        else:
            assert not accepted, "what was begun cannot be undone"

    @precondition(lambda self: self.held)
    @rule(data=st.data(), end=st.sampled_from(ENDS), times=st.integers(1, 3))
    def any_claim_ever_made_ends(self, data: st.DataObject, end: tuple[Phase, Reason | None], times: int) -> None:
        held = data.draw(st.sampled_from(self.held))
        current, endings = self._is_current(held), self.endings
        report = ResolvedReported(held.run, held.token, Resolved(at_s=self.now_s, phase=end[0], reason=end[1]))
        accepted = [self._step(report) for _ in range(times)]
        if current:
            assert all(accepted), "a worker that holds its lease is heard, however often it says it"
        else:
            assert self.endings == endings
        assert len(set(accepted)) == 1
        assert self.endings - endings <= 1

    @precondition(lambda self: self.life.phase is Phase.RUNNING)
    @rule(run=st.integers(-1, 9), token=st.integers(-1, 20))
    def a_forger_guesses(self, run: int, token: int) -> None:
        if (run, token) in {(held.run, held.token) for held in self.held}:
            return
        report = Resolved(at_s=0.0, phase=Phase.COMPLETED)
        assert not self._step(ResolvedReported(run, token, report))

    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_dies(self, worker: str) -> None:
        assert self._step(WorkerLost(worker))
        assert self.life.worker != worker

    @rule()
    def a_user_cancels(self) -> None:
        self._step(CancelAsked("a user"))
        assert self.life.phase.final

    @precondition(lambda self: self.reruns < 3)
    @rule()
    def a_user_wants_it_again(self) -> None:
        if self._step(RerunAsked("a user", self.now_s + DEADLINE_S, RETRIES, waits_for=self.life.waits_for)):
            self.reruns += 1

    @precondition(lambda self: self.held)
    @rule()
    def a_worker_talks_nonsense(self) -> None:
        held = self.held[-1]
        before = self.life
        try:
            step(before, ResolvedReported(held.run, held.token, Resolved(at_s=0.0, phase=Phase.PENDING)), now_s=0.0)
        except (InvalidSpec, Conflict):
            return
        raise AssertionError("a run cannot end as pending")

    def _is_current(self, held: Held) -> bool:
        return (
            self.life.phase is Phase.RUNNING and held.token == self.life.token and held.run == len(self.life.runs) - 1
        )

    @invariant()
    def at_most_one_run_is_live_and_it_is_the_last(self) -> None:
        live = [number for number, run in enumerate(self.life.runs) if not run.phase.final]
        expected = [len(self.life.runs) - 1] if self.life.phase in (Phase.PENDING, Phase.RUNNING) else []
        assert live == expected

    @invariant()
    def tokens_only_grow(self) -> None:
        assert self.tokens == sorted(self.tokens)
        given = [run.token for run in self.life.runs if run.worker]
        assert given == sorted(set(given))
        assert all(token > 0 for token in given)

    @invariant()
    def runs_stay_within_retries(self) -> None:
        assert len(self.life.runs) <= (1 + self.reruns) * (1 + RETRIES)
        assert 0 <= self.life.retries_left <= RETRIES

    @invariant()
    def every_start_has_exactly_one_ending(self) -> None:
        assert self.endings == self.reruns + (1 if self.life.phase.final else 0)

    @invariant()
    def every_run_that_a_worker_had_is_audited_once_when_it_ended(self) -> None:
        had = [number for number, run in enumerate(self.life.runs) if run.worker and run.phase.final]
        assert self.audited == had

    @invariant()
    def an_exception_has_a_reason_and_nothing_else_has(self) -> None:
        things: list[TaskLife | Run] = [self.life, *self.life.runs]
        for thing in things:
            assert (thing.phase is Phase.EXCEPTION) == (thing.reason is not None)

    def teardown(self) -> None:
        """Liveness: once the world is kind, the task comes to an end within its retries."""
        if not hasattr(self, "life"):
            return
        for name in self.life.waits_for:
            self._step(DependencyResolved(name, Phase.COMPLETED))
        for _ in range(RETRIES + 2):
            if self.life.phase is Phase.PENDING:
                self.a_worker_claims("ann")
            if self.life.phase is Phase.RUNNING:
                run, token = len(self.life.runs) - 1, self.life.token
                report = Resolved(at_s=self.now_s, phase=Phase.COMPLETED)
                assert self._step(ResolvedReported(run, token, report))
        assert self.life.phase.final
        self.every_start_has_exactly_one_ending()


TestHostileWorld = HostileWorld.TestCase
TestHostileWorld.settings = settings(derandomize=True, deadline=None, max_examples=300, stateful_step_count=40)
