"""A worker's link to a real gRPC server on loopback: joining, being told, being lost, coming back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from corral.fleet.adapters.grpc_link import LinkConfig, SchedulerLink
from corral.fleet.adapters.grpc_server import FleetServicer, serving
from corral.fleet.adapters.memory import MemoryWorkerTable
from corral.fleet.model import Capacity, DesiredState, FleetConfig, Registration, RunRef, WorkerPhase, WorkerState
from corral.fleet.ports import QueueHooks
from corral.fleet.service import Fleet
from corral.kernel.clock import SystemClock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import Conflict, InvalidSpec, StoreUnavailable, Unauthenticated
from corral.testing.late_writes import late_writes
from corral.wire.transport import ClientTls, WireLimits, open_channel
from corral.wire.v1 import fleet_pb2, fleet_pb2_grpc
from corral.wire.v1.fleet_pb2_grpc import FleetStub

TOKEN = "worker-token"
RUN = RunRef(task_id="task_1", run=0, token=7)


@dataclass
class World:
    """A scheduler that can be stopped and started again on the same port."""

    config: FleetConfig = field(default_factory=FleetConfig)
    table: MemoryWorkerTable = field(default_factory=MemoryWorkerTable)
    lost: list[str] = field(default_factory=list)
    lost_fails: int = 0
    cancel: list[RunRef] = field(default_factory=list)
    aborts: Signal = field(default_factory=Signal)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0
    fleet: Fleet | None = None

    async def worker_lost(self, worker_id: str) -> None:
        if self.lost_fails:
            self.lost_fails -= 1
            raise StoreUnavailable("injected")
        self.lost.append(worker_id)

    async def desired_cancels(self, worker_id: str) -> Sequence[RunRef]:
        return tuple(self.cancel)

    def verify(self, token: str, *, actor: str = "") -> None:
        if token != TOKEN:
            raise Unauthenticated("no")

    @property
    def it(self) -> Fleet:
        assert self.fleet is not None
        return self.fleet

    def phase(self, worker_id: str = "wrk_a") -> WorkerPhase | None:
        found = {worker.registration.worker_id: worker.phase for worker in self.it.list_workers()}
        return found.get(worker_id)

    @asynccontextmanager
    async def scheduler(self) -> AsyncIterator[Fleet]:
        hooks = QueueHooks(worker_lost=self.worker_lost, desired_cancels=self.desired_cancels, aborts=self.aborts)
        fleet = self.fleet = Fleet(
            self.table,
            SystemClock(),
            hooks,
            self.verify,
            self.config,
            on_refusal=lambda kind, actor, reason: self.refusals.append((kind, actor)),
        )
        await fleet.load()

        def add(server: grpc.aio.Server) -> None:
            fleet_pb2_grpc.add_FleetServicer_to_server(FleetServicer(fleet, "sch_1"), server)

        async with (
            serving(f"127.0.0.1:{self.port}", [add], limits=WireLimits()) as self.port,
            asyncio.TaskGroup() as group,
        ):
            upkeep = group.create_task(fleet.run())
            try:
                yield fleet
            finally:
                upkeep.cancel()


class Node:
    """A worker that does nothing but attend."""

    def __init__(self, world: World, worker_id: str = "wrk_a", instance: str = "one", token: str = TOKEN) -> None:
        self.state = WorkerState(slots_free=4)
        self.desired: list[DesiredState] = []
        self.link = SchedulerLink(
            f"127.0.0.1:{world.port}",
            token,
            Registration(worker_id=worker_id, instance=instance, capacity=Capacity(slots=4), runtimes=("bubblewrap",)),
            state=lambda: self.state,
            on_desired=self.desired.append,
            config=LinkConfig(retry_min_s=0.02, retry_max_s=0.2),
        )


@asynccontextmanager
async def linked(node: Node) -> AsyncIterator[Node]:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.link.run())
        try:
            yield node
        finally:
            running.cancel()


async def until(condition: Callable[[], bool], *, within_s: float = 10) -> float:
    started = time.perf_counter()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - any condition, seen from outside
            await asyncio.sleep(0.005)
    return time.perf_counter() - started


async def test_a_worker_joins_is_listed_and_ready() -> None:
    world = World()
    async with world.scheduler() as fleet, linked(Node(world)) as node:
        await node.link.wait_session()

        worker = fleet.get("wrk_a")
        assert (worker.phase, worker.state) == (WorkerPhase.READY, node.state)
        assert fleet.feasible_workers("bubblewrap") == ["wrk_a"]
        assert fleet.feasible_workers("qemu") == []


async def test_the_leases_of_a_worker_whose_link_dies_end_within_two_seconds() -> None:
    world = World(lost_fails=1)
    async with world.scheduler():
        async with linked(Node(world)) as node:
            await node.link.wait_session()

        took_s = await until(lambda: world.lost == ["wrk_a"])

        assert took_s < 2
        assert world.phase() is WorkerPhase.EVICTED


async def test_a_worker_that_comes_back_within_the_grace_keeps_its_leases() -> None:
    world = World()
    async with world.scheduler():
        async with linked(Node(world)) as node:
            await node.link.wait_session()
        async with linked(Node(world)) as again:
            await again.link.wait_session()
            await asyncio.sleep(world.config.reconnect_grace_s + 0.2)

            assert world.phase() is WorkerPhase.READY
            assert world.lost == []


async def test_a_new_process_of_a_worker_ends_the_leases_of_the_former_at_once() -> None:
    world = World(config=FleetConfig(reconnect_grace_s=60))
    async with world.scheduler():
        async with linked(Node(world)) as node:
            await node.link.wait_session()
        async with linked(Node(world, instance="two")) as again:
            await again.link.wait_session()

            assert world.lost == ["wrk_a"]


async def test_a_second_worker_with_the_same_id_is_refused_while_the_first_is_connected() -> None:
    world = World()
    async with world.scheduler(), linked(Node(world)) as first:
        await first.link.wait_session()
        async with linked(Node(world, instance="two")) as second:
            await until(lambda: second.link.trouble != "")

            assert "another process is connected as worker wrk_a" in second.link.trouble
            assert not second.link.connected
            assert first.link.connected
            assert ("worker-id-conflict", "wrk_a") in world.refusals


async def test_a_worker_with_a_wrong_token_is_refused_and_keeps_asking() -> None:
    world = World()
    async with world.scheduler(), linked(Node(world, token="guess")) as node:
        await until(lambda: node.link.trouble != "")

        assert not node.link.connected
        assert world.phase() is None


async def test_a_worker_outlives_schedulers_that_are_away_restart_and_forget_its_session() -> None:
    world = World()
    async with world.scheduler():
        pass
    async with linked(Node(world)) as node:
        async with world.scheduler():
            first = await node.link.wait_session()
            assert world.phase() is WorkerPhase.READY
        await until(lambda: not node.link.connected)
        async with world.scheduler():
            second = await node.link.wait_session()
            assert world.phase() is WorkerPhase.READY
            assert second.number > first.number
            assert second.metadata != first.metadata
    assert world.lost == []


async def test_a_session_that_a_call_found_refused_is_replaced() -> None:
    world = World()
    async with world.scheduler(), linked(Node(world)) as node:
        first = await node.link.wait_session()

        node.link.session_refused(first)
        second = await node.link.wait_session()

        assert second.number == first.number + 1
        assert world.lost == []


async def test_a_call_that_ends_just_before_the_worker_tells_its_state_is_begun_anew() -> None:
    world = World()
    async with world.scheduler():
        pass
    node = Node(world)
    async with linked(node):
        async with AsyncExitStack() as scheduler:
            await scheduler.enter_async_context(world.scheduler())
            first = await node.link.wait_session()
            with late_writes() as begun:
                node.link.state_changed()
                await begun.wait()
                await scheduler.aclose()
        await until(lambda: not node.link.connected)
        async with world.scheduler():
            second = await node.link.wait_session()

    assert second.number == first.number + 1


async def test_a_cancel_is_pushed_at_once() -> None:
    world = World()
    async with world.scheduler(), linked(Node(world)) as node:
        await node.link.wait_session()
        world.cancel.append(RUN)
        world.aborts.notify()

        took_s = await until(lambda: node.desired[-1].cancel == (RUN,))

        assert took_s < 1


async def test_drain_is_pushed_and_a_drained_worker_takes_nothing() -> None:
    world = World()
    async with world.scheduler() as fleet, linked(Node(world)) as node:
        await node.link.wait_session()
        node.state = WorkerState(slots_free=3, runs=(RUN,))
        node.link.state_changed()
        await until(lambda: fleet.get("wrk_a").state == node.state)

        await fleet.drain("wrk_a")
        await until(lambda: node.desired[-1].drain)
        assert world.phase() is WorkerPhase.DRAINING
        node.state = WorkerState(slots_free=4)
        node.link.state_changed()
        await until(lambda: world.phase() is WorkerPhase.DRAINED)
        assert fleet.feasible_workers() == []

        await fleet.undrain("wrk_a")
        await until(lambda: not node.desired[-1].drain)
        assert world.phase() is WorkerPhase.READY


async def test_a_drained_worker_that_leaves_is_gone_at_once() -> None:
    world = World(config=FleetConfig(reconnect_grace_s=60))
    async with world.scheduler():
        node = Node(world)
        node.state = WorkerState(slots_free=4, draining=True)
        async with linked(node):
            await node.link.wait_session()
            await until(lambda: world.phase() is WorkerPhase.DRAINED)

        await until(lambda: world.phase() is WorkerPhase.EVICTED)


async def test_drain_outlives_a_restart_of_the_scheduler() -> None:
    world = World()
    async with world.scheduler() as fleet, linked(Node(world)) as node:
        await node.link.wait_session()
        await fleet.drain("wrk_a")
    async with world.scheduler() as fleet:
        assert fleet.get("wrk_a").drain


async def test_a_silent_worker_is_evicted_although_its_stream_is_open() -> None:
    world = World(config=FleetConfig(heartbeat_s=0.1, silent_after_s=0.5))
    async with world.scheduler():
        async with asyncio.timeout(10), grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
            stub = FleetStub(channel)
            answer = await stub.Authenticate(
                fleet_pb2.AuthenticateRequest(worker_token=TOKEN, worker_id="wrk_a", instance="one")
            )
            metadata = (("authorization", f"Bearer {answer.session_token}"),)
            await stub.Register(fleet_pb2.RegisterRequest(worker_id="wrk_a", instance="one"), metadata=metadata)
            call = stub.Attend(metadata=metadata)  # type: ignore[call-arg]
            await call.write(fleet_pb2.WorkerState(slots_free=1))

            await until(lambda: world.lost == ["wrk_a"])

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Register(fleet_pb2.RegisterRequest(worker_id="wrk_a", instance="one"), metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_calls_without_a_session_and_sessions_of_others_are_refused() -> None:
    world = World()
    async with world.scheduler() as fleet, grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
        stub = FleetStub(channel)
        request = fleet_pb2.RegisterRequest(worker_id="wrk_b", instance="one")
        for metadata in ((), (("authorization", "Bearer guess"),), (("authorization", "Basic x"),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Register(request, metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

        token = fleet.authenticate(TOKEN, "wrk_a", "one")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Register(request, metadata=(("authorization", f"Bearer {token}"),))
        assert refused.value.code() is grpc.StatusCode.ABORTED
        assert ("worker-id-mismatch", "wrk_a") in world.refusals


async def test_a_taken_port_is_one_clear_error() -> None:
    world = World()
    async with world.scheduler():
        with pytest.raises(Conflict, match="is in use by another process"):
            async with serving(f"127.0.0.1:{world.port}", [], limits=WireLimits()):
                pass


async def test_plain_text_beyond_this_machine_must_be_said_on_purpose() -> None:
    with pytest.raises(InvalidSpec, match="no TLS"):
        async with serving("0.0.0.0:0", [], limits=WireLimits()):
            pass
    with pytest.raises(InvalidSpec, match="no TLS"):
        await open_channel("10.0.0.1:7071", ClientTls(), WireLimits())
