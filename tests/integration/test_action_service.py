"""Actions through the durable queue: hits, joins, restarts, failures, and fairness between tenants."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from corral.actions.adapters.messages import read_result, write_result
from corral.actions.errors import MissingBlobs
from corral.actions.limits import ActionLimits
from corral.actions.model import ActionReport, ActionResult, Ended, ExecutionOutcome, ExecutionUpdate, OutputFile, Stage
from corral.actions.payload import ActionPayload, write_payload, write_report
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import write_bytes
from corral.database.engine import Database
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import Conflict, InvalidSpec, NotFound
from corral.tasks.limits import QueueLimits
from corral.tasks.model import Priority, TaskDefinition
from corral.tasks.ports import Claim
from corral.testing.action_fleet import PretendedWorker, Scheduler, at_work, succeed
from corral.testing.actions import build_action, shell

WITHIN_S = 20


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


def counted(inner: Callable[[Claim, Digest], Awaitable[ActionReport]] = succeed) -> PretendedWorker:
    return PretendedWorker(perform=inner)


async def queue_only(scheduler: Scheduler, digest: Digest) -> str:
    """Queue an action and go away; its execution."""
    async with aclosing(scheduler.service.execute("ann", digest)) as updates:
        return (await anext(updates)).execution


async def eventually(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110 (what is waited for tells nobody)
        await asyncio.sleep(0.005)


def end_of(updates: list[ExecutionUpdate]) -> ExecutionOutcome:
    assert updates[-1].stage is Stage.COMPLETED
    outcome = updates[-1].outcome
    assert outcome is not None
    return outcome


async def test_an_action_is_executed_once_and_then_found(database: Database, blobs: MemoryBlobs) -> None:
    scheduler, worker = Scheduler.on(database, blobs), counted()
    digest = await build_action(shell("true")).store(blobs, "ann")

    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker):
        first = await scheduler.execute("ann", digest)
        second = await scheduler.execute("ann", digest)

    assert [update.stage for update in first] in (
        [Stage.QUEUED, Stage.EXECUTING, Stage.COMPLETED],
        [Stage.QUEUED, Stage.COMPLETED],
    )
    assert (end_of(first).cached, end_of(second).cached) == (False, True)
    assert end_of(first).result == end_of(second).result
    assert worker.performed == {"ann": 1}


async def test_another_tenant_s_result_is_not_found(database: Database, blobs: MemoryBlobs) -> None:
    scheduler, worker = Scheduler.on(database, blobs), counted()
    built = build_action(shell("true"))

    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker):
        for tenant in ("ann", "bob"):
            await scheduler.execute(tenant, await built.store(blobs, tenant))

    assert worker.performed == {"ann": 1, "bob": 1}


async def test_skip_cache_lookup_runs_it_again(database: Database, blobs: MemoryBlobs) -> None:
    scheduler, worker = Scheduler.on(database, blobs), counted()
    digest = await build_action(shell("true")).store(blobs, "ann")

    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker):
        await scheduler.execute("ann", digest)
        again = await scheduler.execute("ann", digest, skip_cache_lookup=True)

    assert not end_of(again).cached
    assert worker.performed == {"ann": 2}


async def test_equal_actions_in_flight_are_one_execution(database: Database, blobs: MemoryBlobs) -> None:
    release = asyncio.Event()

    async def slow(claim: Claim, digest: Digest) -> ActionReport:
        await release.wait()
        return await succeed(claim, digest)

    scheduler, worker = Scheduler.on(database, blobs), counted(slow)
    digest = await build_action(shell("true")).store(blobs, "ann")

    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker), asyncio.TaskGroup() as group:
        tasks = [group.create_task(scheduler.execute("ann", digest)) for _ in range(10)]
        await eventually(lambda: scheduler.service.statistics().joined == 9)
        release.set()

    assert worker.performed == {"ann": 1}
    assert len({task.result()[-1].execution for task in tasks}) == 1


async def test_do_not_cache_is_neither_kept_nor_joined(database: Database, blobs: MemoryBlobs) -> None:
    async def honest(claim: Claim, digest: Digest) -> ActionReport:
        del claim, digest
        return ActionReport(ended=Ended.EXITED, result=write_result(ActionResult()), do_not_cache=True)

    scheduler, worker = Scheduler.on(database, blobs), counted(honest)
    digest = await build_action(shell("true"), do_not_cache=True).store(blobs, "ann")

    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker):
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(scheduler.execute("ann", digest)) for _ in range(2)]
        third = await scheduler.execute("ann", digest)

    assert len({updates[-1].execution for updates in (*(task.result() for task in both), third)}) == 3
    assert await scheduler.service.cache.get("ann", digest) is None


@pytest.mark.parametrize(("ended", "exit_code"), [(Ended.EXITED, 1), (Ended.TIMED_OUT, 0), (Ended.SIGNALED, 137)])
async def test_only_success_is_cached(database: Database, blobs: MemoryBlobs, ended: Ended, exit_code: int) -> None:
    async def fail(claim: Claim, digest: Digest) -> ActionReport:
        del claim, digest
        return ActionReport(ended=ended, message="so", result=write_result(ActionResult(exit_code=exit_code)))

    scheduler, worker = Scheduler.on(database, blobs), counted(fail)
    digest = await build_action(shell("false")).store(blobs, "ann")

    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker):
        outcomes = [end_of(await scheduler.execute("ann", digest)) for _ in range(2)]

    assert worker.performed == {"ann": 2}
    assert [(each.ended, each.message, each.cached) for each in outcomes] == [(ended, "so", False)] * 2
    assert outcomes[0].result is not None
    assert read_result(outcomes[0].result, HashFunction.SHA256).exit_code == exit_code


async def test_a_result_whose_output_is_gone_is_made_again(database: Database, blobs: MemoryBlobs) -> None:
    async def leave(claim: Claim, digest: Digest) -> ActionReport:
        del digest
        output = await write_bytes(blobs, claim.tenant, b"output", function=HashFunction.SHA256)
        result = write_result(ActionResult(files=(OutputFile("out", output),)))
        return ActionReport(ended=Ended.EXITED, result=result, named=(str(output),))

    scheduler, worker = Scheduler.on(database, blobs, limits=ActionLimits(fresh_s=0)), counted(leave)
    digest = await build_action(shell("true")).store(blobs, "ann")
    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker):
        await scheduler.execute("ann", digest)
        await blobs.delete("ann", [Digest.of(b"output", HashFunction.SHA256)])

        again = await scheduler.execute("ann", digest)

    assert not end_of(again).cached
    assert worker.performed == {"ann": 2}
    assert not await blobs.find_missing("ann", [Digest.of(b"output", HashFunction.SHA256)])


async def test_an_action_that_is_not_stored_is_named(database: Database, blobs: MemoryBlobs) -> None:
    scheduler = Scheduler.on(database, blobs)
    built = build_action(shell("true"))
    cases = [(built.without(built.digest), built.digest), (built.without(built.action.command), built.action.command)]

    for number, (partial, gone) in enumerate(cases):
        tenant = f"tenant{number}"
        with pytest.raises(MissingBlobs) as raised:
            await scheduler.execute(tenant, await partial.store(blobs, tenant))
        assert raised.value.digests == (gone,)


async def test_a_worker_that_misses_inputs_names_all_of_them(database: Database, blobs: MemoryBlobs) -> None:
    gone = [Digest.of(bytes([n]), HashFunction.SHA256) for n in range(3)]

    async def miss(claim: Claim, digest: Digest) -> ActionReport:
        del claim, digest
        return ActionReport(missing=tuple(str(each) for each in gone))

    scheduler, worker = Scheduler.on(database, blobs), counted(miss)
    digest = await build_action(shell("true")).store(blobs, "ann")

    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker):
        outcome = end_of(await scheduler.execute("ann", digest))

    assert isinstance(outcome.error, MissingBlobs)
    assert set(outcome.error.digests) == set(gone)
    assert outcome.result is None


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ((("pool", "big"),), 'no pool "big"'),
        ((("OSFamily", "windows"),), "all run linux"),
        ((("cpus", "-1"),), "between 0.01 and 4096"),
    ],
)
async def test_an_impossible_platform_is_refused_at_once(
    database: Database, blobs: MemoryBlobs, platform: tuple[tuple[str, str], ...], words: str
) -> None:
    digest = await build_action(shell("true"), platform=platform).store(blobs, "ann")

    with pytest.raises(InvalidSpec, match=words):
        await Scheduler.on(database, blobs).execute("ann", digest)


async def test_a_named_pool_stands_for_its_properties(database: Database, blobs: MemoryBlobs) -> None:
    seen: list[object] = []

    async def look(claim: Claim, digest: Digest) -> ActionReport:
        seen.append(claim.definition.payload["action"]["platform"])
        return await succeed(claim, digest)

    limits = ActionLimits(pools={"big": {"memory": "8GB", "cpus": "4"}})
    scheduler, worker = Scheduler.on(database, blobs, limits=limits), counted(look)
    platform = (("pool", "big"), ("cpus", "2"), ("container-image", "docker://debian:12"))
    digest = await build_action(shell("true"), platform=platform).store(blobs, "ann")

    async with asyncio.timeout(WITHIN_S), at_work(scheduler, worker):
        await scheduler.execute("ann", digest)

    assert seen == [{"pool": "big", "memory": "8GB", "cpus": "2", "image": "docker://debian:12"}]


async def test_an_execution_survives_its_scheduler(database: Database, blobs: MemoryBlobs) -> None:
    digest = await build_action(shell("true")).store(blobs, "ann")
    first = Scheduler.on(database, blobs)
    async with asyncio.timeout(WITHIN_S), aclosing(first.service.execute("ann", digest)) as updates:
        queued = await anext(updates)  # and here the first scheduler is killed

    second, worker = Scheduler.on(database, blobs), counted()
    async with asyncio.timeout(WITHIN_S), at_work(second, worker):
        followed = [update async for update in second.service.wait("ann", queued.execution)]
        joined = await second.execute("ann", digest)

    assert end_of(followed).result is not None
    assert end_of(joined).cached
    assert worker.performed == {"ann": 1}


async def test_a_result_is_kept_with_the_end_of_its_execution(database: Database, blobs: MemoryBlobs) -> None:
    digest = await build_action(shell("true")).store(blobs, "ann")
    scheduler, worker = Scheduler.on(database, blobs), counted()

    async with asyncio.timeout(WITHIN_S):
        await queue_only(scheduler, digest)  # its client is gone
        await worker.perform_one(scheduler.queue)

    assert await scheduler.service.cache.get("ann", digest) is not None


async def test_a_long_result_that_no_scheduler_heard_of_is_found_with_its_execution(
    database: Database, blobs: MemoryBlobs
) -> None:
    async def tell_elsewhere(claim: Claim, digest: Digest) -> ActionReport:
        whole = write_report(await succeed(claim, digest))
        return ActionReport(elsewhere=str(await write_bytes(blobs, claim.tenant, whole.encode())))

    digest = await build_action(shell("true")).store(blobs, "ann")
    first, worker = Scheduler.on(database, blobs), counted(tell_elsewhere)
    async with asyncio.timeout(WITHIN_S):
        await queue_only(first, digest)
        await worker.perform_one(first.queue)
        assert await first.service.cache.get("ann", digest) is None  # its scheduler was killed before

        found = await Scheduler.on(database, blobs).execute("ann", digest)

    assert end_of(found).cached
    assert worker.performed == {"ann": 1}
    assert await first.service.cache.get("ann", digest) is not None


async def test_work_that_was_running_and_waiting_when_all_was_killed_is_done(
    database: Database, blobs: MemoryBlobs
) -> None:
    limits = QueueLimits(lease_s=1.0, sweep_every_s=0.1)
    digests = [await build_action(shell(f"true {n}")).store(blobs, "ann") for n in range(30)]
    executions: list[str] = []
    first = Scheduler.on(database, blobs, queue_limits=limits)
    async with asyncio.timeout(WITHIN_S):
        for digest in digests:
            async with aclosing(first.service.execute("ann", digest)) as updates:
                executions.append((await anext(updates)).execution)
        claims = await first.queue.claim("wrk_dead", 10, wait_s=5, runtimes=("bubblewrap",))

    second, worker = Scheduler.on(database, blobs, queue_limits=limits), counted()
    async with asyncio.timeout(WITHIN_S), at_work(second, worker), asyncio.TaskGroup() as group:

        async def follow(execution: str) -> ExecutionOutcome:
            return end_of([update async for update in second.service.wait("ann", execution)])

        followed = [group.create_task(follow(execution)) for execution in executions]

    assert len(claims) == 10
    assert all(task.result().result is not None for task in followed)
    assert worker.performed == {"ann": 30}


async def test_an_execution_that_nobody_waits_for_is_canceled(database: Database, blobs: MemoryBlobs) -> None:
    scheduler = Scheduler.on(database, blobs, limits=ActionLimits(abandon_s=0.01))
    digest = await build_action(shell("true")).store(blobs, "ann")
    async with asyncio.timeout(WITHIN_S), aclosing(scheduler.service.execute("ann", digest)) as updates:
        execution = (await anext(updates)).execution
        assert await scheduler.service.sweep_abandoned() == 0
    await asyncio.sleep(0.02)  # what is tested: that much time without anybody
    assert await scheduler.service.sweep_abandoned() == 1

    outcome = end_of([update async for update in scheduler.service.wait("ann", execution)])

    assert isinstance(outcome.error, Conflict)
    assert scheduler.service.statistics().abandoned == 1


async def test_an_execution_can_be_canceled_and_others_cannot_see_it(database: Database, blobs: MemoryBlobs) -> None:
    scheduler = Scheduler.on(database, blobs)
    digest = await build_action(shell("true")).store(blobs, "ann")
    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
        waiting = group.create_task(scheduler.execute("ann", digest))
        await eventually(lambda: scheduler.service.statistics().queued == 1)
        while not (tasks := await scheduler.views.page("ann")):
            await scheduler.queue.signals.changed.wait_notified(within_s=1)
        execution = tasks[0].id

        for asked in (scheduler.service.cancel("bob", execution), anext(scheduler.service.wait("bob", execution))):
            with pytest.raises(NotFound):
                await asked
        await scheduler.service.cancel("ann", execution)
        await scheduler.service.cancel("ann", execution)

    assert isinstance(end_of(waiting.result()).error, Conflict)


async def test_two_thousand_long_actions_do_not_hold_up_another_tenant(sqlite_url: str, blobs: MemoryBlobs) -> None:
    """Counted in actions that are begun, not in seconds: 20 alone on four slots take five rounds; at most 2.2 times as
    many rounds of eight slots have room for 88 actions, Bob's 20 among them."""
    slots, few, ratio = 8, 20, 2.2
    rounds_alone = few / (slots / 2)
    held: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def long(claim: Claim, digest: Digest) -> ActionReport:
        ended = asyncio.Event()
        await held.put(ended)
        await ended.wait()
        return await succeed(claim, digest)

    async def end_in_turns() -> None:
        while True:  # whoever began first ends first, one at a time: so all actions are equally long
            (await held.get()).set()
            await asyncio.sleep(0.002)

    async with Database.open(sqlite_url) as database, asyncio.timeout(60):
        scheduler = Scheduler.on(database, blobs)
        greedy = [Digest.of(f"greedy {n}".encode(), HashFunction.SHA256) for n in range(2000)]
        for start in range(0, len(greedy), 1000):  # as their executions, without as many clients
            payloads = [write_payload(ActionPayload(digest=str(each))) for each in greedy[start : start + 1000]]
            definitions = [TaskDefinition(payload=payload, priority=Priority.HIGHEST) for payload in payloads]
            await scheduler.queue.submit("ann", definitions)
        digests = [await build_action(shell(f"few {n}")).store(blobs, "bob") for n in range(few)]
        worker = PretendedWorker(slots=slots, perform=long)
        async with at_work(scheduler, worker), asyncio.TaskGroup() as group:
            await eventually(lambda: held.qsize() >= slots)  # Ann has every slot
            waiting = [group.create_task(scheduler.execute("bob", digest)) for digest in digests]
            await eventually(lambda: scheduler.service.statistics().queued == few)
            ending = group.create_task(end_in_turns())
            await asyncio.wait(waiting)
            ending.cancel()
            between = worker.performed["ann"]

    assert between + few <= ratio * rounds_alone * slots
