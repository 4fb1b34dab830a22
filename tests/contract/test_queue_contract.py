"""The queue on a real database of either kind."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from corral.database.engine import Database
from corral.kernel.errors import Conflict, InvalidSpec, NotFound, QueueFull
from corral.kernel.ids import new_id
from corral.ledger.adapters.sql import SqlAuditRows
from corral.tasks.adapters.sql import TaskFilter
from corral.tasks.limits import QueueLimits
from corral.tasks.model import (
    Artifact,
    ArtifactKind,
    Phase,
    Priority,
    Reason,
    Requires,
    Resolved,
    RunReport,
    Started,
    Task,
    TaskDefinition,
)
from corral.tasks.ports import Claim, RunRef, TenantTerms, WorkerOffer
from corral.tasks.queue import Queue
from corral.tasks.sweeper import run_sweeper
from corral.tasks.views import TaskViews

ANN, BOB = "wrk_ann", "wrk_bob"
T0 = 1_800_000_000.0
LIMITS = QueueLimits(lease_s=30.0, claim_tick_s=0.2, sweep_every_s=0.05)


@dataclass
class HandClock:
    """Wall time stands still until it is turned; durations are the loop's."""

    wall_s: float = T0

    def now_s(self) -> float:
        return self.wall_s

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class RunningClock(HandClock):
    """Wall time goes with the loop's."""

    def now_s(self) -> float:
        return T0 + self.monotonic_s()


@dataclass
class Book:
    """Tenants with their terms, and one secret each."""

    granted: dict[str, TenantTerms] = field(default_factory=lambda: {"red": TenantTerms(), "blue": TenantTerms()})

    def names(self) -> Collection[str]:
        return self.granted

    def terms(self, tenant: str) -> TenantTerms:
        return self.granted.get(tenant, TenantTerms())

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        return {name: f"{tenant}'s {name}" for name in names}


@dataclass
class Yard:
    """A queue with its views, and hands to work it."""

    database: Database
    clock: HandClock = field(default_factory=HandClock)
    book: Book = field(default_factory=Book)
    workers: Sequence[WorkerOffer] | None = None
    shared: bool = True

    def __post_init__(self) -> None:
        self.queue = Queue(
            self.database,
            self.clock,
            self.book,
            LIMITS,
            check_payload=lambda payload: ["payload.x: unknown"] if "x" in payload else [],
            secret_names=lambda payload: payload.get("secrets", ()),
            shared=self.shared,
        )
        self.views = TaskViews(self.database, self.clock, self.book, self.queue.signals, workers=lambda: self.workers)

    async def submit(self, tenant: str = "red", **fields: Any) -> Task:
        fields.setdefault("payload", {})
        return (await self.queue.submit(tenant, [TaskDefinition(**fields)]))[0]

    async def claim(self, worker: str = ANN, slots: int = 1, **fields: Any) -> Sequence[Claim]:
        return await self.queue.claim(worker, slots, wait_s=0.0, **fields)

    async def report(self, claim: Claim, report: RunReport, worker: str = ANN) -> None:
        error = (await self.queue.report(worker, [(claim.ref, report)]))[0]
        if error is not None:
            raise error

    async def run(self, phase: Phase = Phase.COMPLETED) -> str:
        claim = (await self.claim())[0]
        await self.report(claim, Resolved(at_s=self.clock.wall_s, phase=phase, exit_status=0))
        return claim.ref.task_id

    async def sweep_all(self) -> None:
        while await self.queue.sweep() >= LIMITS.sweep_tasks:
            pass

    async def phase(self, task: Task) -> Phase:
        return (await self.views.get(task.tenant, task.id)).life.phase


async def claim_waits(yard: Yard) -> None:
    """Return when a claim has found nothing and waits."""
    async with asyncio.timeout(20):
        while not yard.queue.signals.pending._waiters:  # noqa: ASYNC110 - nothing tells that somebody began to wait
            await asyncio.sleep(0)


@pytest.fixture
async def yard(database: Database) -> AsyncIterator[Yard]:
    yield Yard(database)


async def test_a_task_goes_from_submission_to_its_end(yard: Yard) -> None:
    task = await yard.submit(name="build")

    claim = (await yard.claim())[0]
    await yard.report(claim, Started(at_s=T0))
    await yard.report(claim, Resolved(at_s=T0, phase=Phase.COMPLETED, exit_status=0, argv=("true",)))

    assert claim.ref == RunRef(task_id=task.id, run=0, token=1)
    assert (claim.tenant, claim.definition.name) == ("red", "build")
    assert claim.lease_until_s == T0 + 30
    assert await yard.phase(task) is Phase.COMPLETED
    assert [line.kind for line in await yard.views.story("red", task.id)] == [
        "submitted",
        "claimed",
        "started",
        "resolved",
    ]
    rows = await yard.database.read(lambda connection: SqlAuditRows().of_task(connection, "red", task.id))
    assert [(row.phase, row.argv, row.worker_id) for row in rows] == [("completed", ("true",), ANN)]


async def test_priorities_come_first_then_age_also_within_one_submission(yard: Yard) -> None:
    normal = await yard.queue.submit("red", [TaskDefinition(payload={}, name=f"n{place}") for place in range(20)])
    yard.clock.wall_s += 1
    high = await yard.submit(priority=Priority.HIGH)
    low = await yard.submit(priority=Priority.LOWEST)

    claims = await yard.claim(slots=22)

    assert [claim.ref.task_id for claim in claims] == [high.id, *(task.id for task in normal), low.id]


async def test_a_claim_waits_for_the_first_task_and_wakes_at_once(yard: Yard) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(yard.queue.claim(ANN, 4, wait_s=20.0))
        await claim_waits(yard)
        task = await yard.submit()

    assert [claim.ref.task_id for claim in waiting.result()] == [task.id]


async def test_a_claim_that_waits_sees_what_another_scheduler_accepted(yard: Yard) -> None:
    other = Yard(yard.database, yard.clock, yard.book)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(yard.queue.claim(ANN, 4, wait_s=20.0))
        await claim_waits(yard)
        task = await other.submit()

    assert [claim.ref.task_id for claim in waiting.result()] == [task.id]


async def test_a_claim_comes_back_empty_when_nothing_came(yard: Yard) -> None:
    assert await yard.queue.claim(ANN, 4, wait_s=0.05) == []
    assert await yard.queue.claim(ANN, 0, wait_s=20.0) == []


async def test_a_worker_gets_only_tasks_for_its_runtimes(yard: Yard) -> None:
    special = await yard.submit(runtime="firecracker")
    plain = await yard.submit()

    assert [claim.ref.task_id for claim in await yard.claim(slots=5, runtimes=("bubblewrap",))] == [plain.id]
    assert [claim.ref.task_id for claim in await yard.claim(slots=5, runtimes=("firecracker",))] == [special.id]


async def test_tenants_share_slots_whatever_their_backlog_and_priorities(yard: Yard) -> None:
    await yard.queue.submit("red", [TaskDefinition(payload={}, priority=Priority.HIGHEST)] * 200)
    await yard.queue.submit("blue", [TaskDefinition(payload={}, priority=Priority.LOWEST)] * 20)

    tenants = [claim.tenant for claim in await yard.claim(slots=16)]

    assert (tenants.count("red"), tenants.count("blue")) == (8, 8)


async def test_one_slot_is_taken_in_turns(yard: Yard) -> None:
    await yard.queue.submit("red", [TaskDefinition(payload={})] * 20)
    await yard.queue.submit("blue", [TaskDefinition(payload={})] * 20)

    served = []
    for _ in range(10):
        claim = (await yard.claim())[0]
        served.append(claim.tenant)
        await yard.report(claim, Resolved(at_s=T0, phase=Phase.COMPLETED))

    assert (served.count("red"), served.count("blue")) == (5, 5)


async def test_a_tenant_never_holds_more_than_its_terms_allow(yard: Yard) -> None:
    yard.book.granted["red"] = TenantTerms(max_running=3)
    tasks = await yard.queue.submit("red", [TaskDefinition(payload={})] * 10)

    assert len(await yard.claim(slots=2)) == 2
    assert len(await yard.claim(slots=8)) == 1
    assert await yard.claim(slots=8) == []
    assert any("max_running is 3" in sentence for sentence in await yard.views.why("red", tasks[-1].id))


async def test_a_tenant_that_is_not_configured_any_more_is_still_served(yard: Yard) -> None:
    task = await yard.submit("green")
    fresh = Yard(yard.database, yard.clock)

    assert [claim.ref.task_id for claim in await fresh.claim()] == [task.id]


async def test_a_lost_worker_gives_up_its_runs_at_once(yard: Yard) -> None:
    await yard.queue.submit("red", [TaskDefinition(payload={})] * 3)
    lost = await yard.claim(slots=3)

    assert await yard.queue.worker_lost(ANN) == 3
    assert await yard.queue.worker_lost(ANN) == 0
    again = await yard.claim(BOB, slots=3)

    assert {(claim.ref.task_id, claim.ref.run, claim.ref.token) for claim in again} == {
        (claim.ref.task_id, 1, 2) for claim in lost
    }
    with pytest.raises(Conflict):
        await yard.report(lost[0], Resolved(at_s=T0, phase=Phase.COMPLETED))


async def test_a_lease_that_is_not_renewed_ends_and_one_that_is_does_not(yard: Yard) -> None:
    await yard.queue.submit("red", [TaskDefinition(payload={})] * 2)
    kept, dropped = await yard.claim(slots=2)
    yard.clock.wall_s += 20
    assert await yard.queue.reclaim(ANN, [kept.ref]) == {kept.ref: T0 + 50}
    yard.clock.wall_s += 15

    await yard.sweep_all()

    assert await yard.queue.reclaim(ANN, [kept.ref, dropped.ref]) == {kept.ref: T0 + 65, dropped.ref: None}
    assert [claim.ref.task_id for claim in await yard.claim(BOB, slots=5)] == [dropped.ref.task_id]


async def test_a_worker_cannot_speak_for_another(yard: Yard) -> None:
    await yard.submit()
    claim = (await yard.claim(ANN))[0]

    assert await yard.queue.reclaim(BOB, [claim.ref]) == {claim.ref: None}
    with pytest.raises(Conflict):
        await yard.report(claim, Resolved(at_s=T0, phase=Phase.COMPLETED), worker=BOB)


async def test_one_bad_report_does_not_hinder_the_others(yard: Yard) -> None:
    await yard.submit()
    claim = (await yard.claim())[0]
    end = Resolved(at_s=T0, phase=Phase.COMPLETED)
    stranger = RunRef(task_id=new_id("task", now_s=T0), run=0, token=1)
    stale = RunRef(task_id=claim.ref.task_id, run=0, token=7)
    wrong = Resolved(at_s=T0, phase=Phase.RUNNING)

    answers = await yard.queue.report(
        ANN,
        [
            (stranger, end),
            (stale, end),
            (claim.ref, wrong),
            (claim.ref, Started(at_s=T0)),
            (claim.ref, end),
            (claim.ref, end),
        ],
    )

    assert [type(answer) for answer in answers] == [NotFound, Conflict, InvalidSpec, type(None), type(None), type(None)]
    task = await yard.views.get("red", claim.ref.task_id)
    assert task.life.phase is Phase.COMPLETED


async def test_reports_and_a_claim_that_go_together_do_what_each_would_do(yard: Yard) -> None:
    waiting = await yard.queue.submit("red", [TaskDefinition(payload={})] * 4)
    first, second = await yard.claim(slots=2)
    stale = RunRef(task_id=second.ref.task_id, run=0, token=7)
    end = Resolved(at_s=T0, phase=Phase.COMPLETED, exit_status=0)

    answers, claims = await yard.queue.report_and_claim(ANN, [(first.ref, end), (stale, end)], 1)
    unasked, none = await yard.queue.report_and_claim(ANN, [(second.ref, end)], 0)

    assert [type(answer) for answer in (*answers, *unasked)] == [type(None), Conflict, type(None)]
    assert [claim.ref.task_id for claim in (*claims, *none)] == [waiting[2].id]
    phases = [await yard.phase(task) for task in waiting]
    assert phases == [Phase.COMPLETED, Phase.COMPLETED, Phase.RUNNING, Phase.PENDING]


async def test_adopting_renews_what_the_worker_has_and_ends_what_it_never_got(yard: Yard) -> None:
    await yard.queue.submit("red", [TaskDefinition(payload={})] * 2)
    kept, never_got = await yard.claim(slots=2)
    yard.clock.wall_s += 5

    answer = await yard.queue.adopt(ANN, [kept.ref])

    assert answer == {kept.ref: T0 + 35}
    assert [claim.ref.task_id for claim in await yard.claim(BOB, slots=5)] == [never_got.ref.task_id]


async def test_a_canceled_run_is_named_to_its_worker_until_its_lease_ends(yard: Yard) -> None:
    task = await yard.submit()
    claim = (await yard.claim())[0]
    assert await yard.queue.desired_cancels(ANN) == []

    canceled = await yard.queue.cancel("red", task.id)

    assert (canceled.life.phase, canceled.life.reason) == (Phase.EXCEPTION, Reason.CANCELED)
    assert await yard.queue.desired_cancels(ANN) == [claim.ref]
    assert await yard.queue.desired_cancels(BOB) == []
    with pytest.raises(Conflict):
        await yard.report(claim, Resolved(at_s=T0, phase=Phase.COMPLETED))
    yard.clock.wall_s += 31
    await yard.sweep_all()
    assert await yard.queue.desired_cancels(ANN) == []


async def test_the_audit_row_of_a_run_that_nobody_reported_says_what_was_asked_for(yard: Yard) -> None:
    task = await yard.submit(payload={"command": ["make", "-j2"], "image": "root:/srv/debian"})
    await yard.claim()

    await yard.queue.cancel("red", task.id)

    rows = await yard.database.read(lambda connection: SqlAuditRows().of_task(connection, "red", task.id))
    assert [(row.reason, row.argv, row.image) for row in rows] == [("canceled", ("make", "-j2"), "root:/srv/debian")]


async def test_a_group_is_canceled_together_and_what_ended_stays(yard: Yard) -> None:
    done = await yard.submit(group="nightly")
    await yard.run()
    live = [await yard.submit(group="nightly") for _ in range(3)]
    other = await yard.submit(group="weekly")

    canceled = await yard.queue.cancel_group("red", "nightly")

    assert {task.id for task in canceled} == {task.id for task in live}
    assert await yard.phase(done) is Phase.COMPLETED
    assert await yard.phase(other) is Phase.PENDING
    assert await yard.queue.cancel_group("blue", "weekly") == []


async def test_dependents_go_when_all_that_they_need_completed(yard: Yard) -> None:
    first, second = await yard.submit(), await yard.submit()
    yard.clock.wall_s += 1
    last = await yard.submit(dependencies=(first.id, second.id))

    await yard.run()
    await yard.sweep_all()
    assert await yard.phase(last) is Phase.UNSCHEDULED
    await yard.run()
    await yard.sweep_all()

    assert await yard.phase(last) is Phase.PENDING
    assert await yard.run() == last.id


async def test_a_failure_runs_down_a_chain_of_dependents(yard: Yard) -> None:
    chain = [await yard.submit()]
    for _ in range(5):
        chain.append(await yard.submit(dependencies=(chain[-1].id,)))
    whatever = await yard.submit(dependencies=(chain[-1].id,), requires=Requires.ALL_RESOLVED)

    await yard.run(Phase.FAILED)
    for _ in chain:
        await yard.sweep_all()

    lives = [(await yard.views.get("red", task.id)).life for task in chain[1:]]
    assert {life.reason for life in lives} == {Reason.DEPENDENCY_FAILED}
    assert await yard.phase(whatever) is Phase.PENDING


async def test_one_submission_may_hold_a_task_and_what_depends_on_it(yard: Yard) -> None:
    ids = [new_id("task", now_s=T0) for _ in range(2)]
    definitions = [TaskDefinition(payload={}), TaskDefinition(payload={}, dependencies=(ids[0],))]

    tasks = await yard.queue.submit("red", definitions, ids=ids)

    assert [task.life.phase for task in tasks] == [Phase.PENDING, Phase.UNSCHEDULED]


async def test_no_cycle_can_be_written(yard: Yard) -> None:
    ids = [new_id("task", now_s=T0) for _ in range(2)]
    definitions = [TaskDefinition(payload={}, dependencies=(other,)) for other in reversed(ids)]

    with pytest.raises(InvalidSpec, match="does not exist before this task"):
        await yard.queue.submit("red", definitions, ids=ids)
    with pytest.raises(InvalidSpec):
        await yard.queue.submit("red", definitions[:1], ids=ids[1:])
    assert await yard.views.page("red") == []


async def test_another_tenants_tasks_do_not_exist(yard: Yard) -> None:
    task = await yard.submit("red")

    for ask in (
        yard.views.get("blue", task.id),
        yard.views.story("blue", task.id),
        yard.views.why("blue", task.id),
        yard.views.artifacts("blue", task.id),
        yard.queue.cancel("blue", task.id),
        yard.queue.rerun("blue", task.id),
    ):
        with pytest.raises(NotFound):
            await ask
    with pytest.raises(InvalidSpec, match="does not exist"):
        await yard.submit("blue", dependencies=(task.id,))
    with pytest.raises(Conflict, match="taken"):
        await yard.queue.submit("blue", [TaskDefinition(payload={})], ids=[task.id])


async def test_a_submission_repeated_under_its_key_gives_the_same_tasks(yard: Yard) -> None:
    definitions = [TaskDefinition(payload={"a": place}) for place in range(3)]

    first = await yard.queue.submit("red", definitions, idempotency_key="k")
    await yard.run()
    second = await yard.queue.submit("red", definitions, idempotency_key="k")
    elsewhere = await yard.queue.submit("blue", definitions, idempotency_key="k")

    assert [task.id for task in second] == [task.id for task in first]
    assert second[0].life.phase is Phase.COMPLETED
    assert {task.id for task in elsewhere}.isdisjoint(task.id for task in first)
    with pytest.raises(Conflict, match="another submission"):
        await yard.queue.submit("red", definitions[:1], idempotency_key="k")


async def test_submissions_under_one_key_that_race_make_one_set_of_tasks(yard: Yard) -> None:
    async def submit() -> list[str]:
        for _ in range(3):
            try:
                tasks = await yard.queue.submit("red", [TaskDefinition(payload={})] * 2, idempotency_key="k")
            except Conflict:
                continue  # PostgreSQL: the other one has just committed; ask again
            return [task.id for task in tasks]
        raise AssertionError("the key never settled")

    async with asyncio.TaskGroup() as group:
        racing = [group.create_task(submit()) for _ in range(5)]

    assert len({tuple(task.result()) for task in racing}) == 1
    assert len(await yard.views.page("red")) == 2


async def test_a_submission_repeated_with_its_ids_changes_nothing(yard: Yard) -> None:
    ids = [new_id("task", now_s=T0)]

    first = await yard.queue.submit("red", [TaskDefinition(payload={})], ids=ids)
    second = await yard.queue.submit("red", [TaskDefinition(payload={})], ids=ids)

    assert first == second
    with pytest.raises(Conflict, match="taken"):
        await yard.queue.submit("red", [TaskDefinition(payload={"other": 1})], ids=ids)


async def test_a_tenants_waiting_tasks_are_bounded_and_its_neighbour_does_not_care(yard: Yard) -> None:
    yard.book.granted["red"] = TenantTerms(max_pending=5)
    await yard.queue.submit("red", [TaskDefinition(payload={})] * 4)

    with pytest.raises(QueueFull, match="4 tasks wait"):
        await yard.queue.submit("red", [TaskDefinition(payload={})] * 2)
    await yard.queue.submit("blue", [TaskDefinition(payload={})] * 10)

    assert len(await yard.views.page("red")) == 4


async def test_all_mistakes_are_listed_at_once_and_nothing_is_kept(yard: Yard) -> None:
    definitions = [
        TaskDefinition(payload={}),
        TaskDefinition(payload={"x": 1}, deadline_s=-1.0, retries=1000),
        TaskDefinition(payload={}, expires_s=float("nan"), dependencies=("nonsense",)),
    ]

    with pytest.raises(InvalidSpec) as refused:
        await yard.queue.submit("red", definitions)

    starts = [mistake.split(":")[0] for mistake in refused.value.mistakes]
    assert starts == [
        "tasks[1].deadline_s",
        "tasks[1].retries",
        "tasks[1].payload.x",
        "tasks[2].expires_s",
        "tasks[2].dependencies",
    ]
    assert await yard.views.page("red") == []


async def test_deadlines_resolve_tasks_in_every_phase(yard: Yard) -> None:
    pending = await yard.submit(deadline_s=10.0)
    unscheduled = await yard.submit(deadline_s=10.0, dependencies=(pending.id,), requires=Requires.ALL_RESOLVED)
    running = await yard.submit(deadline_s=10.0, priority=Priority.HIGHEST)
    claim = (await yard.claim())[0]
    yard.clock.wall_s += 10

    await yard.sweep_all()

    for task in (pending, unscheduled, running):
        life = (await yard.views.get("red", task.id)).life
        assert (life.phase, life.reason) == (Phase.EXCEPTION, Reason.DEADLINE_EXCEEDED)
    assert await yard.queue.desired_cancels(ANN) == [claim.ref]


async def test_an_expired_task_is_forgotten_and_its_audit_row_stays(yard: Yard) -> None:
    task = await yard.submit(expires_s=60.0)
    await yard.run()
    yard.clock.wall_s += 61

    await yard.sweep_all()

    with pytest.raises(NotFound):
        await yard.views.get("red", task.id)
    assert await yard.views.events("red", after_seq=0) == []
    rows = await yard.database.read(lambda connection: SqlAuditRows().of_task(connection, "red", task.id))
    assert len(rows) == 1


async def test_a_final_task_runs_again_on_request(yard: Yard) -> None:
    task = await yard.submit()
    await yard.run(Phase.FAILED)

    await yard.queue.rerun("red", task.id)
    await yard.run()

    life = (await yard.views.get("red", task.id)).life
    assert (life.phase, [run.phase for run in life.runs]) == (Phase.COMPLETED, [Phase.FAILED, Phase.COMPLETED])


async def test_a_chain_that_broke_can_be_rerun_from_its_root(yard: Yard) -> None:
    root = await yard.submit()
    leaf = await yard.submit(dependencies=(root.id,))
    await yard.run(Phase.FAILED)
    await yard.sweep_all()

    with pytest.raises(Conflict, match="did not complete"):
        await yard.queue.rerun("red", leaf.id)
    await yard.queue.rerun("red", root.id)
    await yard.queue.rerun("red", leaf.id)
    assert await yard.phase(leaf) is Phase.UNSCHEDULED
    await yard.run()
    await yard.sweep_all()

    assert await yard.phase(leaf) is Phase.PENDING


async def test_a_task_that_was_submitted_after_its_dependency_failed_waits_for_it_when_rerun(yard: Yard) -> None:
    root = await yard.submit()
    await yard.run(Phase.FAILED)
    leaf = await yard.submit(dependencies=(root.id,))
    assert (leaf.life.phase, leaf.life.reason) == (Phase.EXCEPTION, Reason.DEPENDENCY_FAILED)

    with pytest.raises(Conflict, match="did not complete"):
        await yard.queue.rerun("red", leaf.id)
    await yard.queue.rerun("red", root.id)
    await yard.queue.rerun("red", leaf.id)

    assert await yard.phase(leaf) is Phase.UNSCHEDULED


async def test_artifacts_are_those_of_the_last_run_that_ended_unless_asked_otherwise(yard: Yard) -> None:
    task = await yard.submit()
    for name in ("old", "new"):
        claim = (await yard.claim())[0]
        made = (Artifact(name=name, kind=ArtifactKind.FILE, digest="b3:x", size_bytes=3_000_000_000),)
        await yard.report(claim, Resolved(at_s=T0, phase=Phase.COMPLETED, artifacts=made))
        if name == "old":
            await yard.queue.rerun("red", task.id)

    assert [artifact.name for artifact in await yard.views.artifacts("red", task.id)] == ["new"]
    assert [artifact.name for artifact in await yard.views.artifacts("red", task.id, 0)] == ["old"]
    with pytest.raises(NotFound, match="no run 7"):
        await yard.views.artifacts("red", task.id, 7)


async def test_pages_go_from_new_to_old_and_filters_narrow_them(yard: Yard) -> None:
    made = []
    for place in range(7):
        yard.clock.wall_s += 1
        made.append(await yard.submit(name="even" if place % 2 == 0 else "odd", group="g" if place < 3 else ""))
    await yard.run()

    first = await yard.views.page("red", limit=4)
    rest = await yard.views.page("red", after=first[-1].id, limit=4)

    assert [task.id for task in (*first, *rest)] == [task.id for task in reversed(made)]
    assert len(await yard.views.page("red", TaskFilter(name="odd"))) == 3
    assert len(await yard.views.page("red", TaskFilter(group="g"))) == 3
    assert [task.id for task in await yard.views.page("red", TaskFilter(phases=(Phase.COMPLETED,)))] == [made[0].id]
    with pytest.raises(InvalidSpec):
        await yard.views.page("red", limit=0)


async def test_the_stream_of_a_group_tells_each_line_once(yard: Yard) -> None:
    await yard.submit(group="g")
    yard.clock.wall_s += 1
    await yard.submit(group="other")
    before = await yard.views.events("red", after_seq=0, group="g")
    await yard.run()

    after = await yard.views.events("red", after_seq=before[-1].seq, group="g")

    assert [line.kind for line in before] == ["submitted"]
    assert [line.kind for line in after] == ["claimed", "resolved"]
    assert await yard.views.last_seq("red") == after[-1].seq
    assert await yard.views.last_seq("blue") == 0


async def test_secrets_that_a_task_names_travel_with_its_claim_only(yard: Yard) -> None:
    task = await yard.submit(payload={"secrets": ["token"]})

    claim = (await yard.claim())[0]

    assert claim.secrets == {"token": "red's token"}
    assert "red's" not in str(await yard.views.get("red", task.id))


async def test_why_names_what_a_pending_task_waits_for(yard: Yard) -> None:
    first = await yard.submit(runtime="firecracker")
    second = await yard.submit(dependencies=(first.id,))
    yard.clock.wall_s += 1
    third = await yard.submit()
    yard.workers = [WorkerOffer(worker=ANN, runtimes=("bubblewrap",), slots=2, slots_free=1, draining=False)]

    assert (
        'no live worker offers the runtime "firecracker"; offered: bubblewrap'
        in (await yard.views.why("red", first.id))[0]
    )
    assert f"it waits for {first.id} (pending) to complete" in (await yard.views.why("red", second.id))[0]
    assert "1 task of this tenant is served before" in (await yard.views.why("red", third.id))[0]
    yard.workers = []
    assert "no worker is connected" in (await yard.views.why("red", third.id))[0]


async def test_statistics_count_by_tenant_and_phase(yard: Yard) -> None:
    await yard.queue.submit("red", [TaskDefinition(payload={})] * 3)
    await yard.claim()

    statistics = await yard.views.statistics()

    assert statistics.phases == {"red": {Phase.PENDING: 2, Phase.RUNNING: 1}}


async def test_the_sweeper_moves_a_chain_along_without_waiting_for_its_turn(yard: Yard) -> None:
    first = await yard.submit()
    second = await yard.submit(dependencies=(first.id,))

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        sweeping = group.create_task(run_sweeper(yard.queue, yard.clock))
        assert await yard.run() == first.id
        claims = await yard.queue.claim(ANN, 1, wait_s=20.0)
        sweeping.cancel()

    assert [claim.ref.task_id for claim in claims] == [second.id]


async def test_a_sweeper_that_is_alone_sleeps_until_something_is_due_and_wakes_for_what_changes(
    database: Database,
) -> None:
    yard = Yard(database, clock=RunningClock(), shared=False)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        sweeping = group.create_task(run_sweeper(yard.queue, yard.clock))
        while not yard.queue.signals.changed._waiters:  # noqa: ASYNC110 - nothing tells that it fell asleep
            await asyncio.sleep(0)

        task = await yard.submit(deadline_s=0.3)
        while await yard.phase(task) is not Phase.EXCEPTION:
            await yard.queue.signals.changed.wait_notified(within_s=5.0)
        sweeping.cancel()


async def test_two_queues_on_one_database_never_hand_out_a_run_twice(yard: Yard) -> None:
    queues = [Yard(yard.database, yard.clock, yard.book) for _ in range(3)]
    tasks = [
        task.id
        for tenant in ("red", "blue")
        for task in await yard.queue.submit(tenant, [TaskDefinition(payload={})] * 100)
    ]
    handed_out: list[RunRef] = []

    async def work(each: Yard, worker: str) -> None:
        while claims := await each.queue.claim(worker, 7, wait_s=0.3):
            handed_out.extend(claim.ref for claim in claims)
            reports: list[tuple[RunRef, RunReport]] = [
                (claim.ref, Resolved(at_s=T0, phase=Phase.COMPLETED)) for claim in claims
            ]
            assert await each.queue.report(worker, reports) == [None] * len(reports)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for place, each in enumerate(queues):
            group.create_task(work(each, f"wrk_{place}a"))
            group.create_task(work(each, f"wrk_{place}b"))

    assert sorted(ref.task_id for ref in handed_out) == sorted(tasks)
    assert {(ref.run, ref.token) for ref in handed_out} == {(0, 1)}
    assert len(await yard.views.page("red", TaskFilter(phases=(Phase.COMPLETED,)), limit=1000)) == 100
