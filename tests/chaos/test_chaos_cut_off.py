"""Two workers on one scheduler, and connections that are lost in every way: killed, stopped, cut."""

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from corral.client import Corral, TaskView
from corral.client.model import StoryEvent
from corral.tasks.model import Phase, Reason, TaskDefinition
from corral.testing.history import contradictions, read_history
from corral.testing.processes import CorralProcess, fixed_addresses, public_directory, terminate_all, why_no_agent
from corral.testing.proxy import CutProxy
from corral.testing.runtime_contract import processes_with

LEASE_S = 4.0
ANN, BOB = "wrk_ann", "wrk_bob"

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]


class Fleet:
    """A scheduler with the workers Ann and Bob; Ann's connection goes through ``cable``."""

    def __init__(self, home: Path) -> None:
        self.scheduler = CorralProcess(
            *("scheduler", home / "scheduler", *fixed_addresses()),
            *(f"queue.lease_s={LEASE_S}", f"fleet.lease_s={LEASE_S}", "queue.sweep_every_s=0.1"),
        )
        self.workers: dict[str, CorralProcess] = {}
        self.corral: Corral
        self.cable: CutProxy

    @asynccontextmanager
    async def running(self, home: Path) -> AsyncIterator["Fleet"]:
        try:
            self.scheduler.start()
            async with AsyncExitStack() as stack:
                self.cable = await stack.enter_async_context(CutProxy(self.scheduler.grpc).listening())
                self.corral = await stack.enter_async_context(Corral(self.scheduler.url))
                for name, address in ((ANN, self.cable.address), (BOB, self.scheduler.grpc)):
                    settings = (f"join.scheduler={address}", f"join.id={name}", "join.link.retry_max_s=0.5")
                    self.workers[name] = CorralProcess("worker", home / name, *settings)
                    self.workers[name].start_nowait()
                await until(self._both_work, "two workers", within_s=60)
                yield self
                self.cable.mend()
        finally:
            for each in (*self.workers.values(), self.scheduler):
                each.signal(signal.SIGCONT)
            terminate_all([*self.workers.values(), self.scheduler])

    async def _both_work(self) -> bool:
        for each in self.workers.values():
            each.check_alive()
        return [each.state for each in await self.corral.workers.list()] == ["ready", "ready"]

    async def submit(self, script: str, *, to: str = "") -> TaskView:
        """Submit a task and wait until it runs; on the worker ``to``, or on any."""
        others = [name for name in self.workers if to and name != to]
        for name in others:
            await self.corral.workers.drain(name)
            await until(partial(self._takes_nothing, name), f"{name} without free slots")
        task = await self.corral.tasks.submit(TaskDefinition(payload={"command": ["/bin/sh", "-c", script]}))
        async for task in self.corral.tasks.watch(task.id):  # noqa: B020 (the newest view)
            if task.last_run is not None and task.last_run.started_s is not None:
                break
        for name in others:
            await self.corral.workers.undrain(name)
        return task

    async def _takes_nothing(self, name: str) -> bool:
        """It says so itself: its long poll has ended."""
        return (await self.corral.workers.get(name)).slots_free == 0

    async def warm_up(self) -> None:
        """Let both workers have warm sandboxes, as workers that have worked do."""
        for name in self.workers:
            await self.corral.tasks.wait((await self.submit("true", to=name)).id)

    async def started_again(self, task: TaskView, on: str = "") -> StoryEvent:
        """The line of the task's story that tells of the first start after run 0, on the worker ``on`` if named."""
        found: list[StoryEvent] = []

        async def told() -> bool:
            events = (await self.corral.tasks.story(task.id)).events
            found.extend(each for each in events if each.kind == "started" and each.run and on in ("", each.worker))
            return bool(found)

        await until(told, "a second start", within_s=8 * LEASE_S)
        return found[0]


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, within_s: float = 20.0) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not await condition():  # noqa: ASYNC110 (other processes; nothing to wait on)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what} did not come within {within_s:g} s") from None


@pytest.fixture
def home() -> Iterator[Path]:
    with public_directory() as path:
        yield path


@pytest.fixture
async def fleet(home: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(home)
    async with fleet.running(home):
        yield fleet
    assert contradictions(read_history(fleet.scheduler.data / "corral.db")) == []


def sleepers(seconds: float) -> int:
    return len(processes_with(f"sleep\0{seconds}\0"))


async def no_sleeper(seconds: float, *, within_s: float) -> None:
    async def gone() -> bool:
        return not sleepers(seconds)

    await until(gone, f"the death of sleep {seconds}", within_s=within_s)


async def test_a_killed_workers_run_starts_elsewhere_within_two_seconds(fleet: Fleet) -> None:
    await fleet.warm_up()
    task = await fleet.submit("sleep 1; echo survived", to=ANN)

    killed_s = time.time()
    fleet.workers[ANN].kill()
    again = await fleet.started_again(task)

    assert again.worker == BOB
    assert again.at_s - killed_s <= 2.0
    done = await fleet.corral.tasks.wait(task.id)
    assert [(run.phase, run.reason) for run in done.runs] == [
        (Phase.EXCEPTION, Reason.CLAIM_EXPIRED),
        (Phase.COMPLETED, None),
    ]


@pytest.mark.parametrize("worker", [ANN, BOB])
async def test_a_cancel_reaches_the_process_within_a_second(fleet: Fleet, worker: str) -> None:
    async def both_sleep() -> bool:
        return sleepers(7101.5) == 2

    task = await fleet.submit("trap '' TERM; sleep 7101.5 & sleep 7101.5", to=worker)
    await until(both_sleep, "both processes")

    asked_s = time.monotonic()
    await fleet.corral.tasks.cancel(task.id)
    await no_sleeper(7101.5, within_s=5)

    assert time.monotonic() - asked_s <= 1.0


async def test_a_worker_that_slept_through_its_lease_changes_nothing(fleet: Fleet) -> None:
    lasts = await fleet.submit("sleep 7102.5", to=ANN)
    ends = await fleet.submit("sleep 2; echo ended", to=ANN)

    fleet.workers[ANN].signal(signal.SIGSTOP)
    done = await fleet.corral.tasks.wait(ends.id)
    await fleet.started_again(lasts, on=BOB)
    before = [await fleet.corral.tasks.story(task.id) for task in (ends, lasts)]
    awake_s = time.time()
    fleet.workers[ANN].signal(signal.SIGCONT)

    assert (done.phase, done.runs[-1].worker) == (Phase.COMPLETED, BOB)

    async def only_bobs() -> bool:
        return sleepers(7102.5) == 1

    async def back_with_nothing() -> bool:
        ann = await fleet.corral.workers.get(ANN)
        return ann.state == "ready" and (ann.last_seen_s or 0) > awake_s and ann.runs == () and ann.slots_free > 0

    await until(only_bobs, "the death of Ann's process", within_s=5)
    await until(back_with_nothing, "Ann without runs")
    assert [await fleet.corral.tasks.story(task.id) for task in (ends, lasts)] == before
    await fleet.corral.tasks.cancel(lasts.id)
    await no_sleeper(7102.5, within_s=5)


async def test_a_worker_without_its_scheduler_aborts_when_the_lease_ends(fleet: Fleet) -> None:
    task = await fleet.submit("trap '' TERM; sleep 7103.5", to=ANN)

    stopped_s = time.monotonic()
    fleet.scheduler.signal(signal.SIGSTOP)
    try:
        await no_sleeper(7103.5, within_s=LEASE_S + 5)
        held_s = time.monotonic() - stopped_s
    finally:
        fleet.scheduler.signal(signal.SIGCONT)

    assert LEASE_S / 2 <= held_s <= LEASE_S + 1.0
    await fleet.started_again(task)
    await fleet.corral.tasks.cancel(task.id)
    await no_sleeper(7103.5, within_s=5)


async def test_two_workers_never_run_one_task_at_once_when_the_cable_is_cut(fleet: Fleet) -> None:
    lasts = await fleet.submit("trap '' TERM; sleep 7104.5", to=ANN)
    ends = await fleet.submit("sleep 2; echo ended", to=ANN)

    fleet.cable.cut()
    most = 0
    async with asyncio.timeout(20):
        while not any(each.worker == BOB for each in await fleet.corral.tasks.runs(lasts.id)) or not sleepers(7104.5):
            most = max(most, sleepers(7104.5))
            await asyncio.sleep(0.005)
    most = max(most, sleepers(7104.5))
    done = await fleet.corral.tasks.wait(ends.id)
    await fleet.started_again(lasts, BOB)  # the news of a start come a moment after it
    before = [await fleet.corral.tasks.story(task.id) for task in (ends, lasts)]
    fleet.cable.mend()

    async def back() -> bool:
        ann = await fleet.corral.workers.get(ANN)
        return ann.state == "ready" and ann.runs == () and ann.slots_free > 0

    await until(back, "Ann's return")
    assert most == 1
    assert (done.phase, done.runs[-1].worker) == (Phase.COMPLETED, BOB)
    assert [await fleet.corral.tasks.story(task.id) for task in (ends, lasts)] == before
    await fleet.corral.tasks.cancel(lasts.id)
    await no_sleeper(7104.5, within_s=5)


async def test_a_live_log_survives_kill_9_of_the_worker_up_to_the_last_flush(fleet: Fleet) -> None:
    task = await fleet.submit('i=0; while :; do echo "$i $(date +%s.%N)"; i=$((i+1)); sleep 0.01; done', to=ANN)

    lines: list[tuple[int, float]] = []
    killed_s, rest = 0.0, b""
    async with aclosing(fleet.corral.logs.read(task.id, 0, follow=True)) as pieces:
        async for piece in pieces:  # ends when the log does: readers are not left waiting
            *whole, rest = (rest + piece).split(b"\n")
            lines += [(int(line.split()[0]), float(line.split()[1])) for line in whole]
            if not killed_s and len(lines) >= 100:
                killed_s = time.time()
                fleet.workers[ANN].kill()
    await fleet.corral.tasks.cancel(task.id)

    assert [number for number, _ in lines] == list(range(len(lines)))
    pause_s = max(after - before for (_, before), (_, after) in pairwise(lines))
    assert lines[-1][1] >= killed_s - 0.2 - pause_s
    async with aclosing(fleet.corral.logs.read(task.id, 0)) as pieces:
        again = b"".join([piece async for piece in pieces])
    assert [int(found) for found in re.findall(rb"^(\d+) \S+$", again, re.MULTILINE)] == list(range(len(lines)))
