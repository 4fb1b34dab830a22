"""The queue on a real database of either kind: claims, leases, reports, and time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from corral.database.engine import Database
from corral.kernel.errors import Conflict, InvalidSpec, NotFound
from corral.kernel.ids import new_id
from corral.ledger.adapters.sql import SqlAuditRows
from corral.tasks.adapters.sql import TaskFilter
from corral.tasks.model import (
    Phase,
    Priority,
    Reason,
    Requires,
    Resolved,
    RunReport,
    Started,
    TaskDefinition,
)
from corral.tasks.ports import RunRef, TenantTerms
from corral.tasks.sweeper import run_sweeper
from corral.testing.queue_yard import ANN, BOB, T0, RunningClock, Yard, claim_waits


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


async def test_secrets_that_a_task_names_travel_with_its_claim_only(yard: Yard) -> None:
    task = await yard.submit(payload={"secrets": ["token"]})

    claim = (await yard.claim())[0]

    assert claim.secrets == {"token": "red's token"}
    assert "red's" not in str(await yard.views.get("red", task.id))


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
