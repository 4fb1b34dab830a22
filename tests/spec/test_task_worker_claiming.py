"""The worker's long poll, and who may end it: on a virtual clock, without sandboxes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from corral.blobs.ports import BlobStore
from corral.kernel.clock import SystemClock
from corral.kernel.errors import SandboxFailed
from corral.tasks.claim_ahead import Pace
from corral.tasks.payload import PayloadSchema
from corral.tasks.ports import Claim
from corral.tasks.run import RunServices, Sandboxes, SandboxLease
from corral.tasks.run_config import RunConfig, WorkerConfig
from corral.tasks.worker import Worker
from corral.testing.memory_source import MemoryTaskSource


class SlowToLetGo(MemoryTaskSource):
    """Ends a poll that is given up only after a while, as a call over a network may."""

    async def claim(self, slots: int, *, wait_s: float, ahead: int = 0) -> Sequence[Claim]:
        try:
            return await super().claim(slots, wait_s=wait_s, ahead=ahead)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            raise


@asynccontextmanager
async def working(
    source: MemoryTaskSource, *, sandboxes: Sandboxes | None = None, config: WorkerConfig | None = None
) -> AsyncIterator[tuple[Worker, "asyncio.Task[None]"]]:
    nothing: Any = None
    services = RunServices(
        sandboxes=sandboxes or cast("Sandboxes", nothing),
        blobs=cast("BlobStore", nothing),
        clock=SystemClock(),
        plugins=(),
        schema=PayloadSchema.of(()),
        config=RunConfig(),
        runtime="bubblewrap",
        new_incident=lambda: "inc_1",
    )
    worker = Worker(source, services, config or WorkerConfig(slots=4))
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


def test_a_worker_claims_ahead_as_many_runs_as_ended_a_moment_ago() -> None:
    pace = Pace(window_s=0.1, most=4)
    before = pace.room(0.0, waiting=0)
    for at_s in (1.0, 1.02, 1.04, 1.06, 1.08, 1.1):
        pace.ended(at_s)

    assert before == 0
    assert pace.room(1.1, waiting=0) == 4, "never more than its most"
    assert pace.room(1.17, waiting=0) == 2
    assert pace.room(1.3, waiting=0) == 0, "long runs claim none ahead"


def test_a_worker_claims_ahead_again_when_half_of_what_waited_has_begun() -> None:
    pace = Pace(window_s=0.1, most=8)
    for _ in range(8):
        pace.ended(1.0)

    assert pace.room(1.0, waiting=5) == 0
    assert pace.room(1.0, waiting=4) == 4


class Gates:
    """Sandboxes that nobody gets before the test opens them; a run waits in its slot."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.asked = 0

    async def acquire(self, key: object, *, within_s: float | None = None) -> SandboxLease:
        self.asked += 1
        await self.opened.wait()
        raise SandboxFailed("the test gives no sandbox")


@asynccontextmanager
async def busy_with_runs_claimed_ahead(
    source: MemoryTaskSource, config: WorkerConfig
) -> AsyncIterator[tuple[Worker, Gates]]:
    """Two slots that are taken, after short runs; two more runs wait here for a slot."""
    gates = Gates()
    gates.opened.set()
    async with working(source, sandboxes=cast("Sandboxes", gates), config=config) as (worker, _):
        for _ in range(2):
            await source.wait_resolved(await source.submit({"command": ["x"]}))
        gates.opened.clear()
        for _ in range(4):
            await source.submit({"command": ["x"]})
        await asyncio.sleep(0.01)
        assert (worker.statistics().executing, worker.statistics().waiting) == (2, 2)
        yield worker, gates
        gates.opened.set()


_TWO = WorkerConfig(slots=2, claim_ahead_s=10.0, claim_ahead=2, claim_ahead_keep_s=0.5, tick_s=0.1)


@pytest.mark.looptime
async def test_runs_that_were_claimed_ahead_begin_when_a_slot_is_free() -> None:
    source = MemoryTaskSource(SystemClock())
    async with busy_with_runs_claimed_ahead(source, _TWO) as (worker, gates):
        gates.opened.set()
        await asyncio.sleep(0.05)

        assert (worker.statistics().executing, worker.statistics().waiting) == (0, 0)
        assert source.returned == []


class NothingAhead(MemoryTaskSource):
    """Takes a moment to say that nothing is there to be claimed ahead."""

    async def claim(self, slots: int, *, wait_s: float, ahead: int = 0) -> Sequence[Claim]:
        if slots == 0:
            self.slots_asked.append(0)
            await asyncio.sleep(0.1)
            return []
        return await super().claim(slots, wait_s=wait_s)


@pytest.mark.looptime
async def test_slots_that_become_free_while_nothing_is_found_ahead_are_asked_for_at_once() -> None:
    source = NothingAhead(SystemClock())
    gates = Gates()
    gates.opened.set()
    async with working(source, sandboxes=cast("Sandboxes", gates), config=_TWO):
        await source.wait_resolved(await source.submit({"command": ["x"]}))
        gates.opened.clear()
        for _ in range(2):
            await source.submit({"command": ["x"]})
        await asyncio.sleep(0.01)
        assert source.slots_asked[-1] == 0
        gates.opened.set()  # both end before the answer is there
        await asyncio.sleep(0.2)

        assert source.slots_asked[-1] == 2


@pytest.mark.looptime
async def test_runs_that_were_claimed_ahead_and_find_no_slot_are_given_back() -> None:
    source = MemoryTaskSource(SystemClock())
    async with busy_with_runs_claimed_ahead(source, _TWO) as (worker, _):
        worker.hold(on=False)
        await asyncio.sleep(0.3)
        assert source.returned == []
        worker.hold(on=True)  # what is given back is not claimed again
        await asyncio.sleep(0.1)

        assert len(source.returned) == 2
        assert (worker.statistics().executing, worker.statistics().waiting) == (2, 0)


@pytest.mark.looptime
async def test_a_drain_gives_back_what_was_claimed_ahead_and_finishes_what_runs() -> None:
    source = MemoryTaskSource(SystemClock())
    async with busy_with_runs_claimed_ahead(source, _TWO) as (worker, _):
        worker.drain()
        await asyncio.sleep(0.01)

        assert len(source.returned) == 2
        assert worker.statistics().executing == 2


@pytest.mark.looptime
async def test_a_run_that_is_canceled_while_it_waits_for_a_slot_never_begins() -> None:
    source = MemoryTaskSource(SystemClock())
    async with busy_with_runs_claimed_ahead(source, _TWO) as (worker, gates):
        asked = gates.asked
        worker.cancel(worker.runs)
        await asyncio.sleep(0.1)

        assert gates.asked == asked
        assert worker.runs == ()
