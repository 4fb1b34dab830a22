"""The contract of tables of workers: in memory, on SQLite and on PostgreSQL; and two schedulers over one table."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from corral.database.engine import Database
from corral.fleet.adapters.memory import MemoryWorkerTable
from corral.fleet.adapters.sql import SqlWorkerTable
from corral.fleet.machine import WorkerLife
from corral.fleet.members import Attendance
from corral.fleet.model import Capacity, FleetConfig, Registration, RunRef, WorkerPhase, WorkerState
from corral.fleet.ports import QueueHooks, WorkerRow, WorkerTable
from corral.fleet.service import Fleet
from corral.kernel.clock import SystemClock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import Conflict, NotFound, Unauthenticated


@pytest.fixture(params=["memory", "sqlite_url", "postgres_database_url"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "memory" else str(request.getfixturevalue(request.param))


@pytest.fixture
async def table(url: str) -> AsyncIterator[WorkerTable]:
    if not url:
        yield MemoryWorkerTable()
        return
    async with Database.open(url) as database:
        yield SqlWorkerTable(database)


def a_row(worker_id: str = "wrk_a", instance: str = "one", **life: object) -> WorkerRow:
    registration = Registration(
        worker_id=worker_id,
        instance=instance,
        capacity=Capacity(slots=3, cpus=1.5, memory_bytes=2**40, disk_bytes=2**41),
        address="192.0.2.1:7",
        runtimes=("bubblewrap", "gvisor"),
        images=("b3:x",),
        certificate_fingerprint="ab" * 32,
        version="1",
        labels={"zone": "east", "ключ": "☃"},
    )
    known = WorkerLife(worker_id=worker_id, instance=instance, phase=WorkerPhase.READY, seen_s=1.25, home="sch_1")
    return WorkerRow(
        registration=registration,
        life=replace(known, **life),  # type: ignore[arg-type]
        registered_s=1_800_000_000.125,
        seen_s=1_800_000_001.5,
    )


async def the_row(table: WorkerTable, worker_id: str = "wrk_a") -> WorkerRow:
    return {row.life.worker_id: row for row in await table.load()}[worker_id]


async def test_what_joins_comes_back_whole_and_by_id(table: WorkerTable) -> None:
    second, first = a_row("wrk_b", attended=True, runs=2, lost_s=0.5, draining=True), a_row("wrk_a")

    assert [await table.join(second), await table.join(first)] == [None, None]

    expected = [replace(row, life=replace(row.life, turn=1)) for row in (first, second)]
    assert list(await table.load()) == expected


async def test_every_registration_is_a_turn_and_tells_who_was_there(table: WorkerTable) -> None:
    await table.join(a_row(instance="one"))

    before = await table.join(a_row(instance="two", home="sch_2"))

    after = await the_row(table)
    assert before is not None
    assert (before.life.instance, before.life.turn) == ("one", 1)
    assert (after.life.instance, after.life.turn, after.life.home) == ("two", 2, "sch_2")


async def test_who_knows_an_older_turn_changes_nothing(table: WorkerTable) -> None:
    await table.join(a_row(instance="one"))
    old = await the_row(table)
    await table.join(a_row(instance="two", home="sch_2"))
    current = await the_row(table)

    await table.save([replace(old, life=replace(old.life, phase=WorkerPhase.EVICTED))])
    assert await the_row(table) == current

    seen = replace(current, seen_s=1_900_000_000.0, life=replace(current.life, phase=WorkerPhase.DRAINED))
    await table.save([seen, a_row("wrk_absent")])
    assert list(await table.load()) == [seen]


async def test_a_drain_stands_whatever_the_worker_does(table: WorkerTable) -> None:
    await table.join(a_row())
    known = await the_row(table)

    await table.ask_drain("wrk_a", drain=True)
    await table.save([known])
    await table.join(a_row(instance="two"))

    assert (await the_row(table)).life.drain_asked
    await table.ask_drain("wrk_a", drain=False)
    await table.ask_drain("wrk_absent", drain=True)
    assert not (await the_row(table)).life.drain_asked


async def test_only_evicted_workers_are_forgotten(table: WorkerTable) -> None:
    await table.join(a_row("wrk_a", phase=WorkerPhase.EVICTED))
    await table.join(a_row("wrk_b"))

    await table.delete(["wrk_a", "wrk_b", "wrk_c"])
    await table.save([])

    assert [row.life.worker_id for row in await table.load()] == ["wrk_b"]


async def test_registrations_at_once_all_get_turns_of_their_own(table: WorkerTable) -> None:
    await table.join(a_row())

    async with asyncio.TaskGroup() as group:
        joins = [group.create_task(table.join(a_row(instance=f"at-once-{number}"))) for number in range(8)]

    assert sorted(before.life.turn for join in joins if (before := join.result())) == list(range(1, 9))
    assert (await the_row(table)).life.turn == 9


# ------------------------------------------------------------------------------------------- two schedulers, one table

QUICK = FleetConfig(heartbeat_s=0.1, silent_after_s=3.0, reconnect_grace_s=0.2, desired_poll_s=0.05)


@dataclass
class House:
    """One scheduler's fleet over a table that others use too."""

    table: WorkerTable
    name: str
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        hooks = QueueHooks(worker_lost=self.worker_lost, desired_cancels=self.nothing, aborts=Signal())
        self.fleet = Fleet(
            self.table, SystemClock(), hooks, lambda token, *, actor="": None, QUICK, scheduler_id=self.name
        )

    async def worker_lost(self, worker_id: str) -> None:
        self.lost.append(worker_id)

    async def nothing(self, worker_id: str) -> Sequence[RunRef]:
        return ()

    async def welcome(self, worker_id: str = "wrk_a", instance: str = "one") -> Attendance:
        session = self.fleet.session(self.fleet.authenticate("token", worker_id, instance))
        await self.fleet.register(session, a_row(worker_id, instance).registration)
        attendance = self.fleet.attend(session)
        self.fleet.heard(attendance, WorkerState(slots_free=3))
        return attendance

    def phase(self, worker_id: str = "wrk_a") -> WorkerPhase | None:
        try:
            return self.fleet.get(worker_id).phase
        except NotFound:
            return None

    @asynccontextmanager
    async def open(self) -> AsyncIterator["House"]:
        await self.fleet.load()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self.fleet.run())
            try:
                yield self
            finally:
                running.cancel()


@asynccontextmanager
async def beating(house: House, attendance: Attendance) -> AsyncIterator[None]:
    """The worker says every now and then that it lives."""

    async def beat() -> None:
        while True:
            house.fleet.heard(attendance, WorkerState(slots_free=3))
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(beat())
        try:
            yield
        finally:
            task.cancel()


async def until(met: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(15):
            while not met():  # noqa: ASYNC110 - any condition, seen from outside
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what} did not come") from None


async def test_a_scheduler_leaves_the_workers_of_another_alone(table: WorkerTable) -> None:
    async with House(table, "sch_1").open() as first, beating(first, await first.welcome()):
        async with House(table, "sch_2").open() as second:
            await until(lambda: second.phase() is WorkerPhase.READY, "news of the worker")
            ends_s = asyncio.get_running_loop().time() + 2 * QUICK.silent_after_s
            await until(lambda: asyncio.get_running_loop().time() > ends_s, "twice the silence that evicts")

            assert (first.phase(), second.phase()) == (WorkerPhase.READY, WorkerPhase.READY)
            assert (first.lost, second.lost) == ([], [])


async def test_a_worker_whose_home_is_gone_is_evicted_by_another_scheduler(table: WorkerTable) -> None:
    async with House(table, "sch_2").open() as second:
        async with House(table, "sch_1").open() as first, beating(first, await first.welcome()):
            await until(lambda: second.phase() is WorkerPhase.READY, "news of the worker")

        await until(lambda: second.lost == ["wrk_a"], "the end of its leases")

        assert second.phase() is WorkerPhase.EVICTED


class Slow(MemoryWorkerTable):
    """Takes a while to write an eviction, and counts what was read after one."""

    read_since = -1

    async def load(self) -> Sequence[WorkerRow]:
        self.read_since += self.read_since >= 0
        return await super().load()

    async def save(self, rows: Sequence[WorkerRow]) -> None:
        evicted = any(row.life.phase is WorkerPhase.EVICTED for row in rows)
        if evicted:
            await asyncio.sleep(4 * QUICK.desired_poll_s)
        await super().save(rows)
        if evicted:
            self.read_since = 0


async def test_what_is_read_while_an_eviction_is_written_does_not_undo_it() -> None:
    table = Slow()
    async with House(table, "sch_2").open() as second:
        async with House(table, "sch_1").open() as first, beating(first, await first.welcome()):
            await until(lambda: second.phase() is WorkerPhase.READY, "news of the worker")

        await until(lambda: table.read_since >= 2, "a look at the table after the eviction")

        assert (second.phase(), second.lost) == (WorkerPhase.EVICTED, ["wrk_a"])


async def test_a_worker_that_moves_to_another_scheduler_keeps_its_leases(table: WorkerTable) -> None:
    async with House(table, "sch_1").open() as first, House(table, "sch_2").open() as second:
        old = await first.welcome()
        await until(lambda: second.phase() is WorkerPhase.READY, "news of the worker")
        first.fleet.stream_lost(old)

        async with beating(second, await second.welcome()):
            await until(lambda: first.phase() is WorkerPhase.READY, "news of the move")
            assert (first.lost, second.lost) == ([], [])
            with pytest.raises(Unauthenticated):
                await first.fleet.wait_feasible(old.session, within_s=0)


async def test_another_process_of_a_worker_that_lives_elsewhere_is_refused(table: WorkerTable) -> None:
    async with House(table, "sch_1").open() as first, House(table, "sch_2").open() as second:
        async with beating(first, await first.welcome(instance="one")):
            await until(lambda: second.phase() is WorkerPhase.READY, "news of the worker")

            with pytest.raises(Conflict, match="another process is connected"):
                await second.welcome(instance="two")


async def test_a_new_process_at_another_scheduler_ends_the_leases_of_the_old_one(table: WorkerTable) -> None:
    async with House(table, "sch_1").open() as first:
        first.fleet.stream_lost(await first.welcome(instance="one"))
        async with House(table, "sch_2").open() as second:
            await second.welcome(instance="two")

            assert second.lost == ["wrk_a"]


async def test_a_drain_asked_at_one_scheduler_reaches_the_worker_at_the_other(table: WorkerTable) -> None:
    async with House(table, "sch_1").open() as first, House(table, "sch_2").open() as second:
        attendance = await first.welcome()
        async with beating(first, attendance):
            await until(lambda: second.phase() is WorkerPhase.READY, "news of the worker")
            await second.fleet.drain("wrk_a")

            await until(lambda: first.phase() is WorkerPhase.DRAINED, "the drain")
            assert (await first.fleet.desired("wrk_a")).drain
            await second.fleet.undrain("wrk_a")
            await until(lambda: first.phase() is WorkerPhase.READY, "the end of the drain")


async def test_a_scheduler_that_restarts_knows_its_workers_and_waits_for_them(table: WorkerTable) -> None:
    async with House(table, "sch_1").open() as first:
        await first.welcome()

    async with House(table, "sch_1").open() as again:
        assert again.phase() is WorkerPhase.REGISTERED
        async with beating(again, await again.welcome()):
            assert again.lost == []
            assert again.phase() is WorkerPhase.READY
