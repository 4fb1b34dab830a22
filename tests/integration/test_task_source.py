"""A worker's source of tasks and its log sink, over a real gRPC server, queue and SQLite database."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from corral.blobs.adapters.memory import MemoryBlobs
from corral.database.engine import Database
from corral.fleet.adapters.grpc_link import LinkConfig, SchedulerLink
from corral.fleet.adapters.grpc_server import FleetServicer, serving
from corral.fleet.adapters.sql import SqlWorkerTable
from corral.fleet.model import Capacity, DesiredState, FleetConfig, Registration, RunRef, WorkerState
from corral.fleet.ports import QueueHooks
from corral.fleet.service import Fleet
from corral.kernel.clock import SystemClock
from corral.kernel.errors import Conflict, CorralError, SchedulerUnavailable
from corral.tasks.adapters.grpc_log_sink import GrpcLogSink, LogSinkConfig
from corral.tasks.adapters.grpc_server import QueueServicer
from corral.tasks.adapters.grpc_source import GrpcTaskSource, SourceConfig
from corral.tasks.adapters.run_owner import tenant_of_run
from corral.tasks.logs import LogConfig, LogKey, LogStore
from corral.tasks.model import Phase, Resolved, RunReport, Started, TaskDefinition
from corral.tasks.ports import Claim, TenantTerms
from corral.tasks.queue import Queue
from corral.tasks.views import TaskViews
from corral.testing.late_writes import late_writes
from corral.wire.transport import WireLimits
from corral.wire.v1 import fleet_pb2_grpc

PAYLOAD = {"command": ["true"]}


class Book:
    def names(self) -> Collection[str]:
        return ("red",)

    def terms(self, tenant: str) -> TenantTerms:
        return TenantTerms()

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        return {}


class Plant:
    """A scheduler that can be stopped and started on the same port and database, and one worker's ends."""

    def __init__(self, url: str, directory: Path, logs: LogConfig) -> None:
        self.url = url
        self.directory = directory
        self.log_config = logs
        self.blobs = MemoryBlobs()
        self.port = 0
        self.reports_per_call: list[int] = []
        self.desired: list[DesiredState] = []

    @asynccontextmanager
    async def scheduler(self) -> AsyncIterator["Plant"]:
        clock = SystemClock()
        async with Database.open(self.url) as database:
            self.queue = Queue(database, clock, Book())
            self.views = TaskViews(database, clock, Book(), self.queue.signals, workers=lambda: None)
            hooks = QueueHooks(
                worker_lost=self.queue.worker_lost,
                desired_cancels=self.queue.desired_cancels,
                aborts=self.queue.signals.aborts,
            )
            self.fleet = Fleet(SqlWorkerTable(database), clock, hooks, lambda token, actor="": None, FleetConfig())
            await self.fleet.load()
            self.logs = LogStore(self.directory, self.blobs, clock, self.log_config)
            tasks = QueueServicer(self.fleet, self.queue, self.logs, tenant_of_run(database))
            report = self.queue.report

            async def counted(worker: str, reports: Sequence[tuple[RunRef, RunReport]]) -> list[CorralError | None]:
                self.reports_per_call.append(len(reports))
                return await report(worker, reports)

            self.queue.report = counted  # type: ignore[method-assign]

            def add(server: grpc.aio.Server) -> None:
                fleet_pb2_grpc.add_FleetServicer_to_server(FleetServicer(self.fleet, "sch_1"), server)
                fleet_pb2_grpc.add_QueueServicer_to_server(tasks, server)

            async with (
                asyncio.TaskGroup() as group,
                serving(f"127.0.0.1:{self.port}", [add], limits=WireLimits()) as self.port,
            ):
                upkeep = [group.create_task(self.fleet.run()), group.create_task(self.logs.run())]
                try:
                    yield self
                finally:
                    for task in upkeep:
                        task.cancel()

    @asynccontextmanager
    async def worker(self, sink: LogSinkConfig | None = None) -> AsyncIterator[None]:
        self.link = SchedulerLink(
            f"127.0.0.1:{self.port}",
            "token",
            Registration(worker_id="wrk_a", instance="one", capacity=Capacity(slots=64), runtimes=("bubblewrap",)),
            state=lambda: WorkerState(slots_free=64),
            on_desired=self.desired.append,
            config=LinkConfig(retry_min_s=0.02, retry_max_s=0.1),
        )
        self.source = GrpcTaskSource(self.link, SourceConfig(retry_min_s=0.02, retry_max_s=0.1, answer_s=5))
        self.sink = GrpcLogSink(self.link, sink)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(self.link.run()), group.create_task(self.sink.run())]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()

    async def submit(self, count: int = 1) -> list[str]:
        return [task.id for task in await self.queue.submit("red", [TaskDefinition(payload=PAYLOAD)] * count)]

    async def claims(self, count: int) -> list[Claim]:
        found: list[Claim] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                found += await self.source.claim(count - len(found), wait_s=5)
        return found

    async def phase(self, task_id: str) -> Phase:
        return (await self.views.get("red", task_id)).life.phase

    async def text(self, task_id: str, *, follow: bool = False) -> bytes:
        key = LogKey("red", task_id, 0)
        return b"".join([piece async for piece in self.logs.read(key, follow=follow)])


@pytest.fixture
def plant(sqlite_url: str, tmp_path: Path) -> Plant:
    return Plant(sqlite_url, tmp_path / "logs", LogConfig(sync_every_s=0.02, seal_grace_s=0.1))


async def until(condition: Callable[[], bool]) -> float:
    started = time.perf_counter()
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - any condition, seen from outside
            await asyncio.sleep(0.005)
    return time.perf_counter() - started


def ended(at_s: float = 2.0) -> Resolved:
    return Resolved(at_s=at_s, phase=Phase.COMPLETED, exit_status=0)


async def test_a_run_is_claimed_started_renewed_and_ended(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        (task_id,) = await plant.submit()

        (claim,) = await plant.claims(1)
        await plant.source.report(claim.ref, Started(at_s=1.0))
        renewed = await plant.source.reclaim([claim.ref, RunRef(task_id="task_none", run=0, token=1)])
        await plant.source.report(claim.ref, ended())
        await plant.source.report(claim.ref, ended())

        assert (claim.ref.task_id, claim.tenant, claim.definition.payload) == (task_id, "red", PAYLOAD)
        lost = {ref for ref, until_s in renewed.items() if until_s is None}
        assert lost == {RunRef(task_id="task_none", run=0, token=1)}
        assert await plant.phase(task_id) is Phase.COMPLETED


async def test_a_waiting_claim_is_answered_as_soon_as_there_is_a_task(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker(), asyncio.TaskGroup() as group:
        await plant.link.wait_session()
        claiming = group.create_task(plant.source.claim(1, wait_s=20))
        done, _ = await asyncio.wait({claiming}, timeout=0.3)
        assert not done
        started = time.perf_counter()

        await plant.submit()
        claims = await claiming

        assert len(claims) == 1
        assert time.perf_counter() - started < 1


async def test_reports_that_come_while_one_is_under_way_go_together(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        await plant.submit(200)
        claims = await plant.claims(200)
        plant.reports_per_call.clear()

        async with asyncio.TaskGroup() as group:
            for claim in claims:
                group.create_task(plant.source.report(claim.ref, ended()))

        assert sum(plant.reports_per_call) == 200
        assert len(plant.reports_per_call) <= 4


async def test_a_claim_goes_with_reports_that_leave_anyway(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        await plant.submit(3)
        first, second = await plant.claims(2)
        plant.queue.claim = None  # type: ignore[assignment,method-assign]  # a claim of its own would fail

        async with asyncio.TaskGroup() as group:
            group.create_task(plant.source.report(first.ref, Started(at_s=1.0)))
            group.create_task(plant.source.report(first.ref, ended()))
            group.create_task(plant.source.report(second.ref, ended()))
            await asyncio.sleep(0)  # they have begun
            claims = await plant.source.claim(8, wait_s=5)

        assert len(claims) == 1
        assert await plant.phase(first.ref.task_id) is await plant.phase(second.ref.task_id) is Phase.COMPLETED


async def test_a_claim_ahead_does_not_wait_behind_reports_that_take_long(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        await plant.submit(3)
        first, second = await plant.claims(2)
        hear, may_hear = plant.queue.report_and_claim, asyncio.Event()

        async def hear_late(worker: str, reports: Sequence[Any], slots: int, **options: Any) -> Any:
            if reports:
                await may_hear.wait()
            return await hear(worker, reports, slots, **options)

        plant.queue.report_and_claim = hear_late  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as group:
            for claim in (first, second):
                group.create_task(plant.source.report(claim.ref, ended()))
            await asyncio.sleep(0)  # the first is under way, the second waits for it
            claims = await plant.source.claim(0, wait_s=5, ahead=8)
            may_hear.set()

        assert len(claims) == 1


async def test_one_stale_report_does_not_hinder_its_neighbours(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        await plant.submit(2)
        first, second = await plant.claims(2)
        stale = RunRef(task_id=first.ref.task_id, run=0, token=first.ref.token + 1)

        async def refused() -> None:
            with pytest.raises(Conflict):
                await plant.source.report(stale, ended())

        async with asyncio.TaskGroup() as group:
            group.create_task(plant.source.report(second.ref, ended()))
            group.create_task(refused())
            group.create_task(plant.source.report(first.ref, ended()))

        assert await plant.phase(first.ref.task_id) is Phase.COMPLETED


async def test_a_report_made_while_the_scheduler_is_away_arrives_when_it_is_back(plant: Plant) -> None:
    async with plant.scheduler():
        pass
    async with plant.worker():
        async with plant.scheduler():
            (task_id,) = await plant.submit()
            (claim,) = await plant.claims(1)
        async with asyncio.TaskGroup() as group:
            reporting = group.create_task(plant.source.report(claim.ref, ended()))
            await until(lambda: not plant.link.connected)
            assert not reporting.done()
            async with plant.scheduler():
                await reporting
                assert await plant.phase(task_id) is Phase.COMPLETED


async def test_a_canceled_report_leaves_the_others_on_their_way(plant: Plant) -> None:
    async with plant.scheduler():
        pass
    async with plant.worker():
        async with plant.scheduler():
            await plant.submit(3)
            claims = await plant.claims(3)
        await until(lambda: not plant.link.connected)
        async with asyncio.TaskGroup() as group:
            reporting = [group.create_task(plant.source.report(claim.ref, ended())) for claim in claims]
            await asyncio.sleep(0)
            reporting[0].cancel()
            async with plant.scheduler():
                await asyncio.wait(reporting)
                phases = [await plant.phase(claim.ref.task_id) for claim in claims]

        assert phases[1:] == [Phase.COMPLETED, Phase.COMPLETED]


async def test_a_claim_without_a_scheduler_says_so(plant: Plant) -> None:
    async with plant.scheduler():
        pass
    async with plant.worker():
        plant.source = GrpcTaskSource(plant.link, SourceConfig(answer_s=0.1))
        with pytest.raises(SchedulerUnavailable):
            await plant.source.claim(1, wait_s=0.1)


async def test_a_draining_worker_gets_nothing_and_a_cancel_reaches_it_within_a_second(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        (task_id,) = await plant.submit()
        (claim,) = await plant.claims(1)
        await plant.queue.cancel("red", task_id)
        took_s = await until(lambda: any(desired.cancel == (claim.ref,) for desired in plant.desired))
        assert took_s < 1

        await plant.fleet.drain("wrk_a")
        await plant.submit()
        assert await plant.source.claim(1, wait_s=0.3) == []


async def test_log_bytes_reach_readers_and_a_closed_log_is_complete(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        await plant.submit()
        (claim,) = await plant.claims(1)
        text = b"".join(b"line %d\n" % number for number in range(200_000))
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(plant.text(claim.ref.task_id, follow=True))
            for at in range(0, len(text), 100_000):
                await plant.sink.append(claim.ref, at, text[at : at + 100_000])
            await plant.sink.append(claim.ref, 0, text[:50_000])
            await plant.sink.close(claim.ref, len(text))

        assert follower.result() == text
        assert plant.sink._held_bytes == 0


async def test_a_line_reaches_a_reader_before_the_next_is_written(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        await plant.submit()
        (claim,) = await plant.claims(1)
        got = bytearray()

        async def follow() -> None:
            async for piece in plant.logs.read(LogKey("red", claim.ref.task_id, 0), follow=True):
                got.extend(piece)

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            for number in range(100):
                await plant.sink.append(claim.ref, number * 10, b"%09d\n" % number)
                await until(lambda number=number: len(got) == (number + 1) * 10)  # type: ignore[misc]
            await plant.sink.close(claim.ref, 1000)

        assert got == b"".join(b"%09d\n" % number for number in range(100))


async def test_a_log_survives_the_scheduler_being_away_in_bounded_memory(plant: Plant) -> None:
    bounds = LogSinkConfig(run_bytes=100_000, total_bytes=150_000, piece_bytes=10_000, retry_s=0.02)
    async with plant.scheduler():
        pass
    async with plant.worker(bounds):
        text = bytes(range(256)) * 4000
        async with plant.scheduler():
            await plant.submit()
            (claim,) = await plant.claims(1)
            await plant.sink.append(claim.ref, 0, text[:50_000])
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(plant.sink.append(claim.ref, 50_000, text[50_000:]))
            await until(lambda: not plant.link.connected)
            assert not writing.done()
            assert plant.sink._held_bytes <= 150_000
            async with plant.scheduler():
                await writing
                await plant.sink.close(claim.ref, len(text))
                assert await plant.text(claim.ref.task_id, follow=True) == text


async def test_a_call_that_ends_just_before_a_write_is_begun_anew(plant: Plant) -> None:
    async with plant.scheduler():
        pass
    async with plant.worker():
        async with AsyncExitStack() as scheduler:
            await scheduler.enter_async_context(plant.scheduler())
            await plant.submit()
            (claim,) = await plant.claims(1)
            with late_writes() as begun:
                await plant.sink.append(claim.ref, 0, b"before, ")
                await begun.wait()
                await scheduler.aclose()
        async with plant.scheduler():
            await plant.sink.append(claim.ref, 8, b"after")
            await plant.sink.close(claim.ref, 13)

            assert await plant.text(claim.ref.task_id, follow=True) == b"before, after"


async def test_the_log_of_a_run_that_is_not_ours_is_refused(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        await plant.submit()
        (claim,) = await plant.claims(1)
        stale = RunRef(task_id=claim.ref.task_id, run=0, token=claim.ref.token + 1)

        await plant.sink.append(stale, 0, b"text")
        with pytest.raises(Conflict):
            await plant.sink.close(stale, 4)

        assert await plant.text(claim.ref.task_id) == b""


async def test_logs_of_many_runs_share_one_stream(plant: Plant) -> None:
    async with plant.scheduler(), plant.worker():
        await plant.submit(50)
        claims = await plant.claims(50)

        async def write(claim: Claim) -> None:
            for number in range(20):
                await plant.sink.append(claim.ref, number * 100, bytes([number]) * 100)
            await plant.sink.close(claim.ref, 2000)

        async with asyncio.TaskGroup() as group:
            for claim in claims:
                group.create_task(write(claim))

        expected = b"".join(bytes([number]) * 100 for number in range(20))
        assert [await plant.text(claim.ref.task_id) for claim in claims] == [expected] * 50
