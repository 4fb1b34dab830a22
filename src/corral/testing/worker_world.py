"""One worker with everything around it: real sandboxes, and a queue, a log and a store in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.blobs.adapters.memory import MemoryBlobs
from corral.kernel.clock import SystemClock
from corral.kernel.ids import new_id
from corral.sandboxes.model import MIB
from corral.sandboxes.pool import Pools
from corral.sandboxes.pool_model import PoolConfig
from corral.sandboxes.runtimes.bubblewrap import BubblewrapRuntime
from corral.sandboxes.runtimes.home import Home
from corral.tasks.model import Resolved
from corral.tasks.payload import PayloadSchema
from corral.tasks.plugin import Plugin
from corral.tasks.plugins.artifacts import ArtifactsPlugin
from corral.tasks.plugins.cache import CacheConfig, CachePlugin
from corral.tasks.plugins.env import EnvConfig, EnvPlugin
from corral.tasks.plugins.livelog import LiveLogConfig, LiveLogPlugin
from corral.tasks.plugins.maxruntime import MaxRunTimePlugin
from corral.tasks.plugins.success import SuccessPlugin
from corral.tasks.plugins.watchdog import WatchdogPlugin
from corral.tasks.ports import RunRef
from corral.tasks.run import RunServices
from corral.tasks.run_config import RunConfig, SizeLimits, WorkerConfig
from corral.tasks.worker import Worker, WorkerStopped
from corral.testing.memory_source import MemoryLogSink, MemoryTaskSource

TENANT = "default"
SIZE = SizeLimits(memory_bytes=256 * MIB, disk_bytes=64 * MIB, processes=64)


@dataclass
class World:
    """One worker and everything around it."""

    source: MemoryTaskSource
    sink: MemoryLogSink
    blobs: MemoryBlobs
    pools: Pools
    worker: Worker
    working: "asyncio.Task[None]"
    cache: CachePlugin

    async def run(self, *command: str, **payload: Any) -> tuple[Resolved, str]:
        """Run a command to its end: the report and the log."""
        ref = await self.source.submit({"command": list(command), **payload})
        resolved = await self.source.wait_resolved(ref)
        return resolved, self.sink.text(ref)

    async def shell(self, script: str, **payload: Any) -> tuple[Resolved, str]:
        """Run a shell script to its end: the report and the log."""
        return await self.run("sh", "-c", script, **payload)

    async def start(self, script: str, **payload: Any) -> RunRef:
        """Start a shell script; returns when its command runs."""
        ref = await self.source.submit({"command": ["sh", "-c", script], **payload})
        await self.source.wait_started(ref)
        return ref


@asynccontextmanager
async def a_world(
    directory: Path,
    *,
    run: RunConfig | None = None,
    worker: WorkerConfig | None = None,
    livelog: LiveLogConfig | None = None,
    lease_s: float = 30.0,
    blobs: MemoryBlobs | None = None,
    extra: tuple[Plugin, ...] = (),
) -> AsyncIterator[World]:
    """A world that lives below ``directory``; its worker works until the block ends, or until it is stopped."""
    clock = SystemClock()
    spool = directory / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        home = stack.enter_context(Home(directory / "sandboxes"))
        runtime = BubblewrapRuntime(home)
        stack.callback(runtime.close)
        pools = await stack.enter_async_context(
            Pools(
                {"bubblewrap": runtime},
                PoolConfig(warm=1),
                clock=clock,
                new_id=lambda: new_id("sbx", now_s=clock.now_s()),
            )
        )
        source, sink = MemoryTaskSource(clock, lease_s=lease_s), MemoryLogSink()
        store = blobs or MemoryBlobs()
        cache = CachePlugin(directory / "caches", clock, CacheConfig(total_bytes=1 * MIB, cache_bytes_max=4 * MIB))
        plugins: tuple[Plugin, ...] = (
            EnvPlugin(EnvConfig(extra={"FROM_WORKER": "yes"})),
            LiveLogPlugin(sink, livelog),
            ArtifactsPlugin(spool),
            cache,
            MaxRunTimePlugin(),
            SuccessPlugin(),
            WatchdogPlugin(clock),
            *extra,
        )
        services = RunServices(
            sandboxes=pools,
            blobs=store,
            clock=clock,
            plugins=plugins,
            schema=PayloadSchema.of(plugins),
            config=run or RunConfig(size=SIZE),
            runtime="bubblewrap",
            new_incident=lambda: new_id("inc", now_s=clock.now_s()),
        )
        loops = Worker(source, services, worker or WorkerConfig(slots=4, tick_s=0.05, retry_s=0.01))
        working = asyncio.create_task(loops.run())  # noqa: TID251 (tests look at how it ended)
        world = World(source, sink, store, pools, loops, working, cache)
        try:
            yield world
        finally:
            loops.stop_now("the test is over")
            async with asyncio.timeout(30):
                await asyncio.wait({working})
            if not working.cancelled() and (failure := working.exception()) is not None:
                assert isinstance(failure, WorkerStopped), failure


async def eventually(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 (the world is another process's as well: there is nothing to wait on)
            await asyncio.sleep(0.005)
