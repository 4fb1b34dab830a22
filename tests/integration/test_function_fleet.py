"""Functions over the real stream: a scheduler, workers without Wasm, and fronts that route by what is pushed."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import write_bytes
from corral.database.engine import Database
from corral.fleet.adapters.grpc_link import SchedulerLink
from corral.fleet.adapters.grpc_server import FleetServicer, serving
from corral.fleet.adapters.memory import MemoryWorkerTable
from corral.fleet.model import Capacity, DesiredState, Registration, WorkerState
from corral.fleet.ports import QueueHooks
from corral.fleet.service import Fleet
from corral.functions import machine
from corral.functions.adapters.grpc_link import FunctionsStream
from corral.functions.adapters.grpc_server import FunctionsServicer
from corral.functions.adapters.homes import MemoryHomeStore, SqlHomeStore
from corral.functions.adapters.memory import MemoryFunctionStore
from corral.functions.adapters.news import SqlNews
from corral.functions.adapters.sql import SqlFunctionStore
from corral.functions.attendant import Attendant
from corral.functions.conductor import Conductor
from corral.functions.config import FunctionsConfig
from corral.functions.homes import Homes, HomeStore
from corral.functions.logs import FunctionLogs
from corral.functions.model import FunctionKey, Kind, LogLine, OnBreak, RevisionKey, RevisionSpec, Scale, Share
from corral.functions.ports import FunctionStore, News
from corral.functions.registry import Registry
from corral.functions.service import Deployment, Functions
from corral.kernel.clock import SystemClock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import Conflict, InvalidSpec, NoFeasibleWorker, NotFound, SchedulerUnavailable
from corral.kernel.ids import new_id
from corral.testing.function_host import MemoryHost, MemoryNetwork
from corral.wire.transport import WireLimits
from corral.wire.v1 import fleet_pb2_grpc, functions_pb2_grpc

HELLO = FunctionKey("default", "hello")
COMMAND = b"\0asm\x01\0\0\0" + bytes([7, 10, 1, 6]) + b"_start" + bytes([0, 0])
QUICK = FunctionsConfig(
    reconnect_grace_s=0.3, settle_s=1.0, tick_s=0.05, report_s=0.2, drain_s=2.0, backoff_first_s=0.02, warm_s=3.0
)
CLOCK = SystemClock()


async def until(met: Callable[[], bool], within_s: float = 10.0) -> None:
    """Look again and again; TimeoutError when it does not become true."""
    async with asyncio.timeout(within_s):
        while not met():  # noqa: ASYNC110 (another process's state, as far as we are concerned)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def a_scheduler(
    store: FunctionStore,
    blobs: MemoryBlobs,
    home: Path,
    *,
    port: int = 0,
    config: FunctionsConfig = QUICK,
    homes: Homes | None = None,
    news: News | None = None,
) -> AsyncIterator[tuple[Functions, int]]:
    async def nothing(worker_id: str) -> tuple[()]:
        return ()

    fleet = Fleet(
        MemoryWorkerTable(),
        CLOCK,
        QueueHooks(worker_lost=nothing, desired_cancels=nothing, aborts=Signal()),
        lambda token, *, actor="": None,
    )
    registry = Registry(store, CLOCK, config)
    await registry.load()
    conductor = Conductor(
        registry,
        CLOCK,
        config,
        epoch=new_id("sch", now_s=1.0),
        new_instance_id=lambda: new_id("fni", now_s=CLOCK.now_s()),
        homes=homes,
    )
    logs = FunctionLogs(home / "logs", CLOCK, config)
    functions = Functions(registry, conductor, logs, blobs, CLOCK, config, news=news)
    servicers = [
        partial(fleet_pb2_grpc.add_FleetServicer_to_server, FleetServicer(fleet, "sch")),
        partial(functions_pb2_grpc.add_FunctionsServicer_to_server, FunctionsServicer(fleet, conductor, logs, config)),
    ]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(fleet.run()), group.create_task(functions.run())]
        async with serving(f"127.0.0.1:{port}", servicers, limits=WireLimits()) as bound:
            yield functions, bound
        for task in running:
            task.cancel()


@asynccontextmanager
async def a_worker(host: MemoryHost, port: int, *, draining: Callable[[], bool] = lambda: False) -> AsyncIterator[None]:
    def heard(desired: DesiredState) -> None:
        del desired

    link = SchedulerLink(
        f"127.0.0.1:{port}",
        "",
        Registration(worker_id=host.worker, instance=new_id("prc", now_s=CLOCK.now_s()), capacity=Capacity(slots=1)),
        state=lambda: WorkerState(slots_free=1),
        on_desired=heard,
    )
    attendant = Attendant(host, draining=draining)
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(each) for each in (link.run(), attendant.run(), FunctionsStream(link, attendant).run())
        ]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


@dataclass
class World:
    """A scheduler and one worker, ``wrk_a``; more may join."""

    functions: Functions
    blobs: MemoryBlobs
    port: int
    network: MemoryNetwork
    host: MemoryHost

    async def deploy(
        self, revision: str, *, name: str = "hello", default: bool | None = None, scale: Scale | None = None
    ) -> machine.Change:
        wanted = await a_deployment(self.blobs, revision, name=name, default=default, scale=scale)
        return (await self.functions.deploy(wanted, actor="test")).change

    async def switch(self, revision: str) -> machine.Change:
        return await self.functions.switch_on(HELLO, revision, actor="test")

    def phases(self, revision: str) -> list[str]:
        return sorted(report.phase.value for _, report in self.functions.status(self.key(revision)).instances)

    def workers(self, revision: str) -> list[str]:
        return sorted(worker for worker, _ in self.functions.status(self.key(revision)).instances)

    def key(self, revision: str) -> RevisionKey:
        function = self.functions.get(HELLO)
        entry = function.state.revision(revision)
        assert entry is not None
        return function.revision_key(entry)


async def a_deployment(
    blobs: MemoryBlobs,
    revision: str,
    *,
    name: str = "hello",
    default: bool | None = None,
    scale: Scale | None = None,
    on_break: OnBreak | None = None,
    program: bytes = COMMAND,
) -> Deployment:
    module = await write_bytes(blobs, "default", program)
    spec = RevisionSpec(module=str(module), kind=Kind.WASI_COMMAND, args=(revision,))
    return Deployment(
        key=FunctionKey("default", name),
        revision=revision,
        spec=spec,
        scale=scale or Scale(),
        default=default,
        on_break=on_break,
    )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    blobs, network = MemoryBlobs(), MemoryNetwork()
    async with a_scheduler(MemoryFunctionStore(), blobs, tmp_path) as (functions, port):
        host = MemoryHost("wrk_a", network)
        async with a_worker(host, port):
            await until(lambda: bool(functions.conductor.hosts()))
            yield World(functions, blobs, port, network, host)


async def test_the_first_revision_answers_as_soon_as_it_is_deployed(world: World) -> None:
    change = await world.deploy("v1")

    assert change.function.state.default == "v1"
    assert (await world.host.call("/functions/hello"))[:2] == (200, "v1")
    assert (await world.host.call("/functions/nobody"))[0] == 404


async def test_revisions_live_side_by_side_and_a_switch_holds_for_the_next_request(world: World) -> None:
    await world.deploy("v1")
    await world.deploy("v2")
    before = [
        await world.host.call(path) for path in ("/functions/hello", "/functions/hello/v2", "/functions/hello@v2")
    ]

    await world.switch("v2")

    after = [await world.host.call(path) for path in ("/functions/hello", "/functions/hello/v1")]
    assert [each[1] for each in before + after] == ["v1", "v2", "v2", "v2", "v1"]


async def test_a_function_without_a_default_says_so_and_elects_nobody(world: World) -> None:
    await world.deploy("v1")
    await world.deploy("v2")

    await world.functions.switch_off(HELLO, "v1", successor="", actor="test")

    assert (await world.host.call("/functions/hello"))[0] == 503
    assert (await world.host.call("/functions/hello/v2"))[:2] == (200, "v2")


async def test_a_stopped_default_stays_the_default_and_is_answered_with_503(world: World) -> None:
    await world.deploy("v1")
    await world.deploy("v2")
    await world.host.call("/functions/hello")

    await world.functions.apply(HELLO, machine.Stop("v1"), actor="test")

    assert (await world.host.call("/functions/hello"))[0] == 503
    assert world.functions.get(HELLO).state.default == "v1"
    await until(lambda: world.host.live() == [])


async def test_a_split_gives_each_its_part(world: World) -> None:
    await world.deploy("v1")
    await world.deploy("v2")

    shares = [Share(revision="v1", percent=80), Share(revision="v2", percent=20)]
    await world.functions.set_split(HELLO, shares, actor="test")

    answers = Counter([(await world.host.call("/functions/hello"))[1] for _ in range(400)])
    assert answers["v1"] + answers["v2"] == 400
    assert 40 <= answers["v2"] <= 130


async def test_instances_grow_with_the_requests_in_flight_and_leave_when_nobody_needs_them(world: World) -> None:
    world.host.work_s = 0.3
    await world.deploy("v1", scale=Scale(max=3, target=2, idle_s=0.2))

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(world.host.call("/functions/hello")) for _ in range(20)]
        await until(lambda: world.phases("v1").count("ready") == 3)

    assert {call.result()[0] for call in calls} == {200}
    await until(lambda: world.host.live() == [])
    assert (await world.host.call("/functions/hello"))[0] == 200


async def test_the_least_number_of_instances_holds_only_with_a_part_of_the_requests(world: World) -> None:
    await world.deploy("v1", scale=Scale(min=2, idle_s=0.1))
    await until(lambda: world.phases("v1") == ["ready", "ready"])

    await world.deploy("v2", default=True)

    await until(lambda: world.phases("v1") == [])


async def test_the_same_again_changes_nothing_and_other_content_is_a_conflict(world: World) -> None:
    first = await world.deploy("v1")

    again = await world.deploy("v1")

    assert again.action == ""
    assert again.function.version == first.function.version
    other = await a_deployment(world.blobs, "v1", program=COMMAND + b"\0\1\0")
    with pytest.raises(Conflict, match="other content"):
        await world.functions.deploy(other, actor="test")


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (b"hello", "not WebAssembly"),
        (b"", "not WebAssembly"),
        (COMMAND[:-3], "cut off"),
        (b"\0asm\x0d\0\x01\0", "is a component"),
        (b"\0asm\x07\0\0\0", "unknown version"),
        (b"\0asm\x01\0\0\0", '"_start"'),
        (b"\0asm\x01\0\0\0" + bytes([7, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]), "more than five bytes"),
        (b"\0asm\x01\0\0\0" + bytes([7, 3, 1, 90, 65]), "longer than its section"),
    ],
)
async def test_what_is_no_program_is_refused_with_the_reason(world: World, program: bytes, says: str) -> None:
    wanted = await a_deployment(world.blobs, "v1", program=program)

    with pytest.raises(InvalidSpec, match=says):
        await world.functions.deploy(wanted, actor="test")

    assert world.functions.list("default") == []


async def test_what_the_engine_has_against_a_program_is_what_its_owner_hears(world: World) -> None:
    wanted = await a_deployment(world.blobs, "v1")
    world.host.bad_programs[wanted.spec.module] = 'unknown import "env.fork"'

    with pytest.raises(InvalidSpec, match=r"env\.fork"):
        await world.functions.deploy(wanted, actor="test")


async def test_a_program_that_is_not_stored_and_one_of_another_tenant_look_alike(world: World) -> None:
    elsewhere = await write_bytes(world.blobs, "acme", COMMAND + b"\0\1\0")
    wanted = await a_deployment(world.blobs, "v1")
    foreign = replace(wanted, spec=msgspec.structs.replace(wanted.spec, module=str(elsewhere)))

    with pytest.raises(NotFound, match="not stored"):
        await world.functions.deploy(foreign, actor="test")


async def test_a_revision_that_cannot_start_does_not_become_the_default(world: World) -> None:
    await world.deploy("v1")
    await world.deploy("bad")
    world.host.faults.add("bad")

    with pytest.raises(Conflict, match="traps at its start"):
        await world.switch("bad")

    assert (await world.host.call("/functions/hello"))[:2] == (200, "v1")


async def test_a_default_that_only_traps_is_broken_and_the_one_before_takes_over(world: World) -> None:
    await world.deploy("v1")
    bad = await a_deployment(world.blobs, "bad", default=True, on_break=OnBreak.PREVIOUS)
    await world.functions.deploy(bad, actor="test")
    world.host.traps.add("bad")

    answers = [(await world.host.call("/functions/hello"))[:2] for _ in range(25)]
    await until(lambda: world.functions.get(HELLO).state.default == "v1")

    assert set(answers) == {(502, "bad")}
    await until(lambda: world.host.table.functions[HELLO].revisions[0].percent == 100)
    assert (await world.host.call("/functions/hello"))[:2] == (200, "v1")
    newest = (await world.functions.history(HELLO, limit=1, before=None))[0]
    assert (newest.actor, newest.action) == ("breaker", "broke")
    assert (await world.host.call("/functions/hello/bad"))[0] == 503


async def test_instances_that_keep_failing_at_their_start_break_their_revision(world: World) -> None:
    world.host.faults.add("v1")
    await world.deploy("v1")

    async with asyncio.TaskGroup() as group:
        call = group.create_task(world.host.call("/functions/hello"))

    assert call.result()[0] == 503
    state = world.functions.get(HELLO).state
    assert state.default == "v1"
    found = state.revision("v1")
    assert found is not None
    assert "traps at its start" in found.why

    world.host.faults.clear()
    await world.functions.apply(HELLO, machine.Start("v1"), actor="test")
    assert (await world.host.call("/functions/hello"))[:2] == (200, "v1")


async def test_two_switches_at_once_both_succeed_and_one_of_them_holds(world: World) -> None:
    for revision in ("v1", "v2", "v3"):
        await world.deploy(revision)
    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(world.switch(revision)) for revision in ("v2", "v3")]

    versions = sorted(turn.result().function.version for turn in turns)
    state = world.functions.get(HELLO).state
    assert versions == [4, 5]
    assert state.default in ("v2", "v3")
    assert (await world.host.call("/functions/hello"))[1] == state.default


async def test_a_switch_by_somebody_who_saw_an_older_version_is_a_conflict(world: World) -> None:
    await world.deploy("v1")
    await world.deploy("v2")

    with pytest.raises(Conflict, match="version 2 now"):
        await world.functions.switch_on(HELLO, "v2", actor="test", expected=1)


async def test_nothing_is_deployed_during_a_shutdown(world: World) -> None:
    world.functions.stop()

    with pytest.raises(SchedulerUnavailable, match="stopping"):
        await world.deploy("v1")


async def test_a_rollback_goes_back_in_one_call_also_after_a_removal(world: World) -> None:
    await world.deploy("v1")
    await world.deploy("v2", default=True)
    await world.functions.apply(HELLO, machine.Remove(), actor="test")
    assert (await world.host.call("/functions/hello"))[0] == 404

    await world.functions.rollback(HELLO, 2, actor="test")

    assert (await world.host.call("/functions/hello"))[:2] == (200, "v2")
    await world.functions.rollback(HELLO, None, actor="test")
    assert (await world.host.call("/functions/hello"))[:2] == (200, "v1")


def logs_in(home: Path) -> list[Path]:
    return list(home.rglob("new.jsonl"))


async def test_a_function_that_was_removed_long_ago_leaves_nothing_behind(tmp_path: Path) -> None:
    store, blobs, host = MemoryFunctionStore(), MemoryBlobs(), MemoryHost("wrk_a", MemoryNetwork())
    config = msgspec.structs.replace(QUICK, forget_after_s=-1.0)
    async with a_scheduler(store, blobs, tmp_path, config=config) as (functions, port), a_worker(host, port):
        await functions.deploy(await a_deployment(blobs, "v1"), actor="test")
        host.log(LogLine(key=RevisionKey(HELLO, "v1", "0" * 16), at_s=1.0, text="one"))
        await until(lambda: bool(logs_in(tmp_path)))
        await functions.apply(HELLO, machine.Remove(), actor="test")

        await functions._forget()

        assert functions.registry.find(HELLO) is None
        assert logs_in(tmp_path) == []


async def test_lines_reach_their_owner_and_can_be_followed(world: World) -> None:
    await world.deploy("v1")
    logs = world.functions.logs
    world.host.log(LogLine(key=world.key("v1"), at_s=1.0, request_id="req_1", text="one"))
    assert await logs.changed.wait_notified(within_s=5.0)

    read = await logs.read(HELLO, after=-1, limit=10)
    following = logs.follow(HELLO, after=read[-1].seq, idle_s=5.0)
    world.host.log(LogLine(key=world.key("v1"), at_s=2.0, request_id="req_2", text="two"))
    then = await anext(following)

    assert [(line.text, line.request_id) for line in (*read, *then)] == [("one", "req_1"), ("two", "req_2")]
    assert then[0].seq > read[0].seq
    assert await logs.read(FunctionKey("other", "hello"), after=-1, limit=10) == []
    assert [line.text for line in await logs.read(HELLO, after=-1, limit=10, request_id="req_2")] == ["two"]
    await following.aclose()


async def test_instances_spread_over_workers_and_move_when_one_drains(world: World) -> None:
    await world.deploy("v1", scale=Scale(min=2, max=4))
    await until(lambda: world.phases("v1") == ["ready", "ready"])
    other = MemoryHost("wrk_b", world.network)
    leaving = asyncio.Event()
    async with a_worker(other, world.port, draining=leaving.is_set):
        await until(lambda: len(world.functions.conductor.hosts()) == 2)
        wider = Scale(min=4, max=4)
        await world.functions.apply(HELLO, machine.SetScale("v1", wider), actor="test")
        await until(lambda: world.phases("v1").count("ready") == 4)
        spread = world.workers("v1")

        leaving.set()

        await until(lambda: set(world.workers("v1")) == {"wrk_a"} and world.phases("v1").count("ready") == 4)
    assert spread == ["wrk_a", "wrk_a", "wrk_b", "wrk_b"]


async def test_a_change_has_reached_every_front_when_the_switch_returns(world: World) -> None:
    await world.deploy("v1")
    await world.deploy("v2")
    await world.switch("v2")
    await world.switch("v1")
    other = MemoryHost("wrk_b", world.network)
    async with a_worker(other, world.port):
        await until(lambda: len(other.table.functions) == 1)
        for revision in ("v2", "v1") * 5:
            await world.switch(revision)
            for front in (world.host, other):
                route = front.table.functions[HELLO]
                assert [each.key.revision for each in route.revisions if each.percent] == [revision]


async def test_a_deployment_waits_a_moment_for_the_first_worker(tmp_path: Path) -> None:
    blobs, host = MemoryBlobs(), MemoryHost("wrk_a", MemoryNetwork())
    config = msgspec.structs.replace(QUICK, warm_s=30.0)
    async with a_scheduler(MemoryFunctionStore(), blobs, tmp_path, config=config) as (functions, port):
        wanted = await a_deployment(blobs, "v1")
        async with asyncio.TaskGroup() as group:
            deploying = group.create_task(functions.deploy(wanted, actor="test"))
            await until(lambda: bool(functions.conductor.changed._waiters))
            async with a_worker(host, port):
                assert (await deploying).change.action == "revision-deployed"


async def test_without_a_worker_a_deployment_says_what_is_missing(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    config = msgspec.structs.replace(QUICK, warm_s=0.1)
    async with a_scheduler(MemoryFunctionStore(), blobs, tmp_path, config=config) as (functions, _):
        with pytest.raises(NoFeasibleWorker, match="no worker"):
            await functions.deploy(await a_deployment(blobs, "v1"), actor="test")


async def test_a_scheduler_that_starts_again_adopts_what_runs_and_fronts_route_meanwhile(tmp_path: Path) -> None:
    store, blobs, network = MemoryFunctionStore(), MemoryBlobs(), MemoryNetwork()
    host = MemoryHost("wrk_a", network)
    async with AsyncExitStack() as worker:
        async with a_scheduler(store, blobs, tmp_path) as (functions, port):
            await worker.enter_async_context(a_worker(host, port))
            await until(lambda: bool(functions.conductor.hosts()))
            await functions.deploy(await a_deployment(blobs, "v1"), actor="test")
            before = (await host.call("/functions/hello"))[2]

        assert (await host.call("/functions/hello"))[2] == before

        async with a_scheduler(store, blobs, tmp_path, port=port) as (functions, _):
            epoch = functions.conductor.table.epoch
            await until(lambda: host.table.epoch == epoch)
            assert (await host.call("/functions/hello"))[2] == before
            assert host.live() == [before]


@dataclass
class Pair:
    """Two schedulers, ``a`` before ``b``, with a worker each, over one database."""

    a: Functions
    b: Functions
    front_a: MemoryHost
    front_b: MemoryHost
    blobs: MemoryBlobs
    stop_a: AsyncExitStack

    async def deploy(self, scale: Scale) -> None:
        await self.a.deploy(await a_deployment(self.blobs, "v1", scale=scale), actor="test")
        await until(lambda: self.b.registry.find(HELLO) is not None)

    def reached_from_b(self) -> bool:
        """Whether b's front knows the instances that a conducts, and no others: what both started at once has left."""
        route = self.front_b.table.functions.get(HELLO)
        known = [each.instance for each in route.revisions[0].backends] if route is not None else []
        return bool(known) and known == self.front_a.live() and not self.front_b.live()

    def live(self) -> tuple[int, int]:
        return len(self.front_a.live()), len(self.front_b.live())


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    functions, homes = MemoryFunctionStore(), MemoryHomeStore()
    async with two_schedulers(tmp_path, [functions] * 2, [homes] * 2, compare_s=0.05) as found:
        yield found


@asynccontextmanager
async def two_schedulers(
    tmp_path: Path,
    stores: Sequence[FunctionStore],
    meeting: Sequence[HomeStore],
    *,
    compare_s: float,
    news: Sequence[News | None] = (None, None),
) -> AsyncIterator[Pair]:
    blobs, network = MemoryBlobs(), MemoryNetwork()
    config = msgspec.structs.replace(QUICK, compare_s=compare_s, home_expires_s=max(1.0, 3 * compare_s))
    fronts = [MemoryHost("wrk_a", network), MemoryHost("wrk_b", network)]
    async with AsyncExitStack() as stack, AsyncExitStack() as first:
        both = []
        for number, (name, front, on) in enumerate((("a", fronts[0], first), ("b", fronts[1], stack))):
            known = Homes(meeting[number], name, CLOCK, expires_s=config.home_expires_s)
            scheduler = a_scheduler(
                stores[number], blobs, tmp_path / name, config=config, homes=known, news=news[number]
            )
            conducting, port = await on.enter_async_context(scheduler)
            await on.enter_async_context(a_worker(front, port))
            await until(lambda conducting=conducting: bool(conducting.conductor.hosts()))  # type: ignore[misc]
            both.append(conducting)
        yield Pair(both[0], both[1], fronts[0], fronts[1], blobs, first)


async def test_of_two_schedulers_the_least_and_the_most_count_once(pair: Pair) -> None:
    await pair.deploy(Scale(min=2, max=2))

    await until(lambda: pair.live() == (2, 0))

    await pair.a.apply(HELLO, machine.SetScale("v1", Scale(min=3, max=3)), actor="test")
    await until(lambda: pair.live() == (3, 0))


async def test_a_front_reaches_the_instances_that_another_scheduler_conducts(pair: Pair) -> None:
    await pair.deploy(Scale(min=1, max=1))
    await until(lambda: pair.live() == (1, 0))
    await until(pair.reached_from_b)

    assert await pair.front_b.call("/functions/hello") == (200, "v1", pair.front_a.live()[0])
    assert pair.live() == (1, 0)


async def test_what_a_scheduler_conducted_that_is_gone_another_one_starts(pair: Pair) -> None:
    await pair.deploy(Scale(min=1, max=1))
    await until(lambda: pair.live() == (1, 0))
    await until(pair.reached_from_b)

    await pair.stop_a.aclose()

    await until(lambda: len(pair.front_b.live()) == 1)
    assert (await pair.front_b.call("/functions/hello"))[2] == pair.front_b.live()[0]


async def test_schedulers_on_postgresql_need_not_look_to_hear_of_each_other(
    tmp_path: Path, postgres_database_url: str
) -> None:
    async with Database.open(postgres_database_url) as a, Database.open(postgres_database_url) as b:
        both = (a, b)
        stores, meeting = [SqlFunctionStore(each) for each in both], [SqlHomeStore(each) for each in both]
        news = [SqlNews(each) for each in both]
        async with two_schedulers(tmp_path, stores, meeting, compare_s=3600.0, news=news) as pair:
            await pair.deploy(Scale(min=1, max=1))
            await until(pair.reached_from_b)
            await pair.a.deploy(await a_deployment(pair.blobs, "v2", scale=Scale(min=1, max=1)), actor="test")

            await pair.a.switch_on(HELLO, "v2", actor="test")

            await until(lambda: split_of(pair.front_b) == {"v2": 100})
            assert (await pair.front_b.call("/functions/hello"))[:2] == (200, "v2")


def split_of(front: MemoryHost) -> dict[str, int]:
    """How it divides the requests for the function."""
    route = front.table.functions.get(HELLO)
    return {each.key.revision: each.percent for each in route.revisions if each.percent} if route is not None else {}


async def die_again_and_again(
    functions: Functions, hosts: list[MemoryHost], workers: dict[str, AsyncExitStack], rng: random.Random
) -> None:
    """An instance dies thirty times, a worker once, and the default changes twice."""
    for number in range(30):
        host = rng.choice(hosts)
        if live := host.live():
            host.crash(rng.choice(live))
        if number in (10, 20):
            await functions.switch_on(HELLO, "v2" if number == 10 else "v1", actor="test")
        if number == 15:
            gone = hosts.pop()
            for instance in gone.live():
                gone.crash(instance)
            await workers[gone.worker].aclose()
        await asyncio.sleep(0.03)


async def test_instances_and_workers_that_die_under_load_cost_few_requests_and_send_none_astray(tmp_path: Path) -> None:
    blobs, network = MemoryBlobs(), MemoryNetwork()
    async with a_scheduler(MemoryFunctionStore(), blobs, tmp_path) as (functions, port), AsyncExitStack() as stack:
        front = MemoryHost("wrk_front", network, instances=0)
        hosts = [MemoryHost(f"wrk_{name}", network, work_s=0.002) for name in "abc"]
        await stack.enter_async_context(a_worker(front, port))
        workers = {host.worker: AsyncExitStack() for host in hosts}
        for host in hosts:
            await workers[host.worker].enter_async_context(a_worker(host, port))
            stack.push_async_exit(workers[host.worker])
        await until(lambda: len(functions.conductor.hosts()) == 4)
        for revision in ("v1", "v2"):
            scale = Scale(min=3, max=6, target=1.0)
            await functions.deploy(await a_deployment(blobs, revision, scale=scale), actor="test")
        answers: Counter[tuple[int, str]] = Counter()
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                status, revision, _ = await front.call("/functions/hello")
                answers[status, revision] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            await die_again_and_again(functions, hosts, workers, random.Random(11))
            done.set()

        assert functions.get(HELLO).state.default == "v1"
        lost = answers.pop((502, ""), 0)  # met three dead instances before the front heard of any
        assert set(answers) == {(200, "v1"), (200, "v2")}
        assert lost * 50 < sum(answers.values())
