"""The worker's long poll, and who may end it: on a virtual clock, without sandboxes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from corral.blobs.ports import BlobStore
from corral.kernel.clock import SystemClock
from corral.tasks.payload import PayloadSchema
from corral.tasks.ports import Claim
from corral.tasks.run import RunServices, Sandboxes
from corral.tasks.run_config import RunConfig, WorkerConfig
from corral.tasks.worker import Worker
from corral.testing.memory_source import MemoryTaskSource


class SlowToLetGo(MemoryTaskSource):
    """Ends a poll that is given up only after a while, as a call over a network may."""

    async def claim(self, slots: int, *, wait_s: float) -> Sequence[Claim]:
        try:
            return await super().claim(slots, wait_s=wait_s)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            raise


@asynccontextmanager
async def working(source: MemoryTaskSource) -> AsyncIterator[tuple[Worker, "asyncio.Task[None]"]]:
    nothing: Any = None
    services = RunServices(
        sandboxes=cast("Sandboxes", nothing),
        blobs=cast("BlobStore", nothing),
        clock=SystemClock(),
        plugins=(),
        schema=PayloadSchema.of(()),
        config=RunConfig(),
        runtime="bubblewrap",
        new_incident=lambda: "inc_1",
    )
    worker = Worker(source, services, WorkerConfig(slots=4))
    async with asyncio.TaskGroup() as group:
        loops = group.create_task(worker.run())
        await asyncio.sleep(0.01)
        yield worker, loops
        worker.drain()


@pytest.mark.looptime
async def test_a_hold_that_is_over_before_the_poll_has_ended_only_starts_another_poll() -> None:
    source = SlowToLetGo(SystemClock())
    async with working(source) as (worker, loops):
        worker.hold(on=True)
        await asyncio.sleep(0.01)
        worker.hold(on=False)
        await asyncio.sleep(1)

        assert not loops.done()
        assert source.slots_asked == [4, 4]


@pytest.mark.looptime
async def test_a_worker_that_reaches_no_scheduler_can_be_held_let_go_and_drained() -> None:
    source = MemoryTaskSource(SystemClock())
    source.down = True
    async with working(source) as (worker, loops):
        await asyncio.sleep(1)
        worker.hold(on=True)
        worker.hold(on=False)
        worker.drain()
        await asyncio.sleep(10)

        assert loops.done()
