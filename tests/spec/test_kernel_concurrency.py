"""Cleanup that survives cancellation, a task that belongs to a block, a wait that many share."""

import asyncio

import pytest

from corral.kernel.concurrency import Signal, background, finish

pytestmark = pytest.mark.looptime


class Cleanup:
    """A cleanup that takes ``takes_s`` and tells what became of it."""

    def __init__(self, takes_s: float, *, failure: Exception | None = None) -> None:
        self.takes_s = takes_s
        self.failure = failure
        self.begun = False
        self.ended = False

    async def __call__(self) -> None:
        self.begun = True
        await asyncio.sleep(self.takes_s)
        if self.failure is not None:
            raise self.failure
        self.ended = True


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def settle(task: "asyncio.Task[None]") -> BaseException | None:
    await asyncio.wait({task})
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def test_finish_runs_a_cleanup_to_its_end() -> None:
    cleanup = Cleanup(5)

    await finish(cleanup(), within_s=10)

    assert cleanup.ended


async def test_finish_hands_on_the_failure_of_the_cleanup() -> None:
    with pytest.raises(KeyError):
        await finish(Cleanup(1, failure=KeyError("cleanup"))(), within_s=10)


@pytest.mark.parametrize("cancels", [1, 2, 10])
async def test_cancellation_waits_for_the_cleanup_however_often_it_comes(cancels: int) -> None:
    cleanup = Cleanup(5)
    task = asyncio.create_task(finish(cleanup(), within_s=10))
    for _ in range(cancels):
        await asyncio.sleep(0.1)
        task.cancel()

    assert isinstance(await settle(task), asyncio.CancelledError)
    assert cleanup.ended
    assert now_s() == pytest.approx(5, abs=0.1)


async def test_cancellation_carries_the_failure_of_the_cleanup_as_its_cause() -> None:
    failure = KeyError("cleanup")

    async def canceled() -> BaseException | None:
        try:
            await finish(Cleanup(5, failure=failure)(), within_s=10)
        except asyncio.CancelledError as error:
            return error.__cause__
        return None

    task = asyncio.create_task(canceled())
    await asyncio.sleep(1)
    task.cancel()

    assert await task is failure


async def test_a_cleanup_that_takes_too_long_is_canceled_and_told() -> None:
    cleanup = Cleanup(1000)

    with pytest.raises(TimeoutError, match="exceeded 10 s"):
        await finish(cleanup(), within_s=10)

    assert cleanup.begun and not cleanup.ended
    assert now_s() == pytest.approx(10, abs=0.1)


async def test_a_deaf_cleanup_is_left_behind() -> None:
    may_end = asyncio.Event()

    async def deaf() -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(TimeoutError):
        await finish(deaf(), within_s=10)

    assert now_s() == pytest.approx(20, abs=0.1)
    may_end.set()
    await asyncio.sleep(0)


async def test_the_timeout_of_a_block_ends_only_after_the_cleanup() -> None:
    cleanup = Cleanup(5)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            try:
                await asyncio.sleep(1000)
            finally:
                await finish(cleanup(), within_s=10)

    assert cleanup.ended


async def test_background_work_ends_with_its_block() -> None:
    cleanup = Cleanup(5)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await finish(cleanup(), within_s=10)

    async with background(work(), name="work") as task:
        await asyncio.sleep(1)
        assert not task.done()

    assert task.cancelled() and cleanup.ended


async def test_background_work_may_end_before_its_block() -> None:
    cleanup = Cleanup(1)

    async with background(cleanup(), name="work") as task:
        await asyncio.sleep(2)
        assert task.done()

    assert cleanup.ended


async def test_the_failure_of_background_work_is_raised_at_the_end_of_the_block() -> None:
    reached = False

    with pytest.raises(KeyError, match="work"):
        async with background(Cleanup(1, failure=KeyError("work"))(), name="work"):
            await asyncio.sleep(2)
            reached = True

    assert reached


async def test_the_blocks_own_error_leaves_unchanged() -> None:
    error = ValueError("block")

    with pytest.raises(ValueError, match="block") as raised:
        async with background(Cleanup(1, failure=KeyError("work"))(), name="work"):
            await asyncio.sleep(2)
            raise error

    assert raised.value is error


async def test_a_signal_wakes_all_that_wait() -> None:
    signal = Signal()

    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(signal.wait_notified(within_s=100)) for _ in range(5)]
        await asyncio.sleep(1)
        signal.notify()

    assert [wait.result() for wait in waits] == [True] * 5
    assert now_s() == pytest.approx(1, abs=0.1)


async def test_a_signal_remembers_nothing() -> None:
    signal = Signal()
    signal.notify()

    assert await signal.wait_notified(within_s=10) is False
    assert now_s() == pytest.approx(10, abs=0.1)


async def test_a_canceled_wait_leaves_the_others_and_nothing_behind() -> None:
    signal = Signal()
    canceled = asyncio.create_task(signal.wait_notified(within_s=100))
    other = asyncio.create_task(signal.wait_notified(within_s=100))
    await asyncio.sleep(1)
    canceled.cancel()
    await asyncio.wait({canceled})
    signal.notify()

    assert await other
    assert not signal._waiters


async def test_whoever_is_woken_may_wait_again_at_once() -> None:
    signal = Signal()
    woken = 0

    async def waits_twice() -> None:
        nonlocal woken
        for _ in range(2):
            woken += await signal.wait_notified(within_s=100)

    task = asyncio.create_task(waits_twice())
    for _ in range(2):
        await asyncio.sleep(1)
        signal.notify()
    await task

    assert woken == 2
