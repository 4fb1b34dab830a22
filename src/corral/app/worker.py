"""The worker process, put together: runtimes and pools, blobs, the link to the scheduler, plugins, and the loops.

SIGTERM or SIGINT drains: nothing new is taken, what runs may finish for ``worker.drain_within_s``; then, or at a
second signal, the runs are stopped and the queue starts them elsewhere. A worker that does not end even so says where
it stands and leaves the hard way. It writes nothing outside its data directory.
"""

import asyncio
import faulthandler
import os
import shutil
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from corral import __version__
from corral.actions.payload import KEY as ACTION
from corral.app.action_runs import ActionKind, open_runner
from corral.app.config_sections import Config
from corral.app.datadir import kept_id, locked_directory
from corral.app.images import make_images
from corral.app.own_certificate import own_fingerprint, result_key
from corral.app.start import configure_logging, read_arguments, run_process, tell
from corral.app.worker_functions import open_worker_functions
from corral.blobs.adapters.tiered import Tier
from corral.blobs.service import keep_clean, open_store
from corral.fleet.adapters.blobs import SchedulerBlobs
from corral.fleet.adapters.grpc_link import SchedulerLink
from corral.fleet.model import Capacity, DesiredState, Registration, WorkerState
from corral.images.service import Images
from corral.kernel.clock import Clock, SystemClock
from corral.kernel.errors import CorralError, InvalidSpec, SandboxFailed
from corral.kernel.ids import new_id, new_token
from corral.sandboxes.pool import Pools
from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.registry import open_runtimes
from corral.tasks.adapters.grpc_log_sink import GrpcLogSink
from corral.tasks.adapters.grpc_source import GrpcTaskSource
from corral.tasks.payload import PayloadSchema
from corral.tasks.plugin import Plugin
from corral.tasks.plugins.artifacts import ArtifactsPlugin
from corral.tasks.plugins.cache import CachePlugin
from corral.tasks.plugins.env import EnvPlugin
from corral.tasks.plugins.livelog import LiveLogPlugin
from corral.tasks.plugins.maxruntime import MaxRunTimePlugin
from corral.tasks.plugins.success import SuccessPlugin
from corral.tasks.plugins.watchdog import WatchdogPlugin
from corral.tasks.ports import LogSink
from corral.tasks.run import RunServices
from corral.tasks.worker import Worker, WorkerStopped

if TYPE_CHECKING:
    from corral.app.worker_door import OpenDoor

_log = structlog.get_logger("corral.worker")
_TIER_S: Final = 300.0
_SUPERVISED_PART: Final = 0.6  # of the time that a supervisor gives: the rest is for the stop itself


class _Wiring:
    """What the link asks of the worker, and the worker of the link: each is made with the other."""

    def __init__(self, config: Config, registration: Registration) -> None:
        self.worker: Worker | None = None
        self.pools: Pools | None = None
        self.images: Images | None = None
        self.door: OpenDoor | None = None
        self.link = SchedulerLink(
            config.join.scheduler,
            config.join.token,
            registration,
            state=self._state,
            on_desired=self._desired,
            config=config.join.link,
        )
        self._data = config.data

    def _state(self) -> WorkerState:
        worker = self.worker
        if worker is None:
            return WorkerState(slots_free=0)
        return WorkerState(
            slots_free=worker.slots_free,
            runs=tuple(worker.runs),
            images=() if self.images is None else self.images.digests(),
            draining=worker.draining or worker.on_hold,
            load=os.getloadavg()[0] / (os.cpu_count() or 1),
            disk_free_bytes=shutil.disk_usage(self._data).free,
            memory_free_bytes=os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            pools_json="" if self.pools is None else msgspec.json.encode(self.pools.statistics()).decode(),
            executions=0 if self.door is None else self.door.places.busy,
        )

    def _desired(self, desired: DesiredState) -> None:
        if self.worker is not None:
            self.worker.cancel(desired.cancel)
            self.worker.hold(on=desired.drain)
        if self.door is not None:
            self.door.entrance.learn(desired.route_key)


@asynccontextmanager
async def running_worker(config: Config) -> AsyncIterator[Worker]:
    """A worker whose parts are open and whose link is being kept; ``run`` it inside the block.

    Raises: InvalidSpec for configuration, and for a runtime that cannot be offered here; Conflict when the data
    directory is taken; StoreUnavailable.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        data = stack.enter_context(locked_directory(config.data, "worker"))
        spool = _empty_folder(data / "spool")
        runtimes = stack.enter_context(_offered(config, data / "sandboxes"))
        await _sweep(runtimes)
        opened: list[Pools] = []
        images = await stack.enter_async_context(  # before the pools, whose sandboxes stand on them to the end
            make_images(config, clock, in_use=lambda: {count.key.root for each in opened for count in each.counts()})
        )
        pools = await stack.enter_async_context(
            Pools(runtimes, config.pool, clock=clock, new_id=lambda: new_id("sbx", now_s=clock.now_s()))
        )
        worker_id = config.join.id or kept_id(data / "worker.id", "wrk", now_s=clock.now_s())
        fingerprint = await own_fingerprint(data, worker_id)
        registration = _registration(config, runtimes, worker_id, fingerprint)
        wiring = _Wiring(
            config, msgspec.structs.replace(registration, images=images.digests(), result_key=result_key(data))
        )
        wiring.pools, wiring.images = pools, images
        opened.append(pools)
        shared = (data / "scheduler.lock").exists()  # then its disk tier is ours, and it does the cleaning
        last = () if shared else (Tier(name="scheduler", store=SchedulerBlobs(wiring.link), deadline_s=_TIER_S),)
        blobs = await stack.enter_async_context(
            open_store(config.blobs, data_dir=data, quota_bytes=partial(_quota_bytes, config), last=last, clock=clock)
        )
        runner = stack.enter_context(
            open_runner(
                config,
                blobs=blobs.cache,
                pools=pools,
                images=images,
                spool=spool,
                worker_id=worker_id,
                clock=clock,
            )
        )
        if config.worker_door.listen:
            from corral.app.worker_door import worker_door  # noqa: PLC0415 - heavy, and most workers have no door

            wiring.door = await stack.enter_async_context(
                worker_door(
                    config, data, worker_id=worker_id, link=wiring.link, blobs=blobs.cache, runner=runner, clock=clock
                )
            )
            wiring.link.registration = msgspec.structs.replace(wiring.link.registration, address=wiring.door.address)
        sink = GrpcLogSink(wiring.link)
        plugins = make_plugins(config, sink=sink, spool=spool, clock=clock)
        services = RunServices(
            sandboxes=pools,
            blobs=blobs.store,
            clock=clock,
            plugins=plugins,
            schema=PayloadSchema.of(plugins),
            config=config.runs,
            runtime=config.runs.runtime or config.runtimes.names[0],
            new_incident=lambda: new_id("inc", now_s=clock.now_s()),
            images=images,
            kinds={ACTION: ActionKind(runner, blobs.store, clock)},
        )
        worker = wiring.worker = Worker(
            GrpcTaskSource(wiring.link), services, config.worker, on_change=wiring.link.state_changed
        )
        loops: list[Coroutine[Any, Any, Any]] = [wiring.link.run(), sink.run(), images.keep_clean()]
        loops += await open_worker_functions(
            config,
            data,
            blobs.store,
            wiring.link,
            clock,
            draining=lambda: worker.draining or worker.on_hold,
            stack=stack,
        )
        if not shared:
            loops += [keep_clean(janitor, clock, config.blobs.clean_every_s) for janitor in blobs.janitors]
        await stack.enter_async_context(_beside(loops))
        yield worker


def make_plugins(config: Config, *, sink: LogSink, spool: Path, clock: Clock) -> tuple[Plugin, ...]:
    """Every plugin of this worker, in no order that matters."""
    return (
        EnvPlugin(config.plugins.env),
        LiveLogPlugin(sink, config.plugins.livelog),
        ArtifactsPlugin(spool, config.plugins.artifacts),
        CachePlugin(config.data / "caches", clock, config.plugins.cache),
        MaxRunTimePlugin(config.plugins.maxruntime),
        SuccessPlugin(),
        WatchdogPlugin(clock, config.plugins.watchdog),
    )


async def serve(config: Config, drain_within_s: float, stopping: asyncio.Event) -> int:
    """Work until told to stop; 0 after a drain, 1 when runs had to be stopped."""
    configure_logging("worker")
    try:
        async with running_worker(config) as worker:
            with _stopped_by_signals(worker, drain_within_s, config.worker.stop_within_s):
                _log.info("working", scheduler=config.join.scheduler, slots=config.worker.slots)
                await worker.run()
    except WorkerStopped as stopped:
        _log.warning("stopped", why=str(stopped))
        return 1
    finally:
        faulthandler.cancel_dump_traceback_later()
    _log.info("drained")
    return 0


@contextmanager
def _stopped_by_signals(worker: Worker, drain_within_s: float, stop_within_s: float) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def stop() -> None:
        if worker.draining:
            worker.stop_now("a second signal")
            return
        _log.info("draining", runs=len(worker.runs), within_s=drain_within_s)
        faulthandler.dump_traceback_later(drain_within_s + stop_within_s, exit=True)
        worker.drain()
        timers.append(loop.call_later(drain_within_s, worker.stop_now, "the drain took too long"))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _beside(loops: list[Coroutine[Any, Any, Any]]) -> AsyncIterator[None]:
    """Run endless loops beside the block; one that fails ends it."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


@contextmanager
def _offered(config: Config, directory: Path) -> Iterator[dict[str, Runtime]]:
    """The runtimes that the configuration names. Raises InvalidSpec when this machine cannot give one of them."""
    with ExitStack() as stack:
        try:
            runtimes = stack.enter_context(open_runtimes(config.runtimes, directory))
        except SandboxFailed as error:
            raise InvalidSpec(f"runtimes: {error.message}", cure=error.cure, field="runtimes") from error
        yield runtimes


async def _sweep(runtimes: Mapping[str, Runtime]) -> None:
    """Free what a predecessor that was killed has left; all runtimes share one home."""
    swept = await next(iter(runtimes.values())).sweep()
    if swept:
        _log.warning("swept leftovers of an earlier worker", sandboxes=swept)


def _registration(config: Config, runtimes: Mapping[str, Runtime], worker_id: str, fingerprint: str) -> Registration:
    return Registration(
        worker_id=worker_id,
        instance=new_token()[:16],
        capacity=Capacity(
            slots=config.worker.slots,
            cpus=float(os.cpu_count() or 1),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            disk_bytes=shutil.disk_usage(config.data).total,
        ),
        runtimes=tuple(runtimes),
        certificate_fingerprint=fingerprint,
        version=__version__,
        labels=config.join.labels,
    )


def _quota_bytes(config: Config, tenant: str) -> int | None:
    return config.tenants[tenant].blob_bytes if tenant in config.tenants else None


def _empty_folder(path: Path) -> Path:
    """A folder for bytes on their way; those of a predecessor lead nowhere."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    return path


def main() -> int:
    """``corral.app.launch worker``."""
    try:
        config, arguments = read_arguments("worker")
    except CorralError as error:
        return tell(error)
    drain_within_s = config.worker.drain_within_s
    if arguments.parent:
        drain_within_s = min(drain_within_s, config.supervisor.stop_s * _SUPERVISED_PART)
    return run_process(partial(serve, config, drain_within_s))
