"""The one module that may start a bare task, and what must not be written twice: cleanup that survives
cancellation, a task that belongs to a block, and a wait that many can share.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


async def finish(cleanup: Coroutine[Any, Any, None], *, within_s: float) -> None:
    """Run ``cleanup`` to its end although the caller is being cancelled, for at most ``within_s`` seconds.

    Raises:
        TimeoutError: the cleanup took longer; it was cancelled, and left behind if it did not listen.
    Cancellation: delayed until the cleanup has ended, then raised (with the cleanup's failure as its cause).
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(cleanup)
    deadline_s = loop.time() + within_s
    interrupted = False
    while not task.done() and (left_s := deadline_s - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=left_s)
        except asyncio.CancelledError:
            interrupted = True  # remember it; wait() leaves the task running
    failure: BaseException | None = None
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=within_s)  # deaf cleanup is left behind, not waited for
        failure = TimeoutError(f"cleanup exceeded {within_s} s")
    elif not task.cancelled():
        failure = task.exception()
    if interrupted:
        raise asyncio.CancelledError from failure
    if failure is not None:
        raise failure  # as in any `finally`, it replaces a cancellation in flight


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Run ``work`` beside the block; it is canceled and awaited when the block ends, unless it has ended before.

    For an object that is a context manager of its own: unlike a TaskGroup, the block's errors leave unchanged, and
    ``work`` that fails does not interrupt the block (the block sees it on the task, which it is given).

    Raises: the failure of ``work``, at the end of a block that did not fail itself.
    Cancellation: of the block cancels ``work`` too.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    try:
        yield task
    except BaseException:
        await finish(_canceled(task), within_s=60)  # the block's own error wins
        raise
    await finish(_canceled(task), within_s=60)
    if not task.cancelled() and (failure := task.exception()) is not None:
        raise failure


async def _canceled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


def raise_if_cancelled() -> None:
    """Raise CancelledError when the running task was asked to end and the request is hidden behind an error.

    Before Python 3.13 a TaskGroup that is cancelled from outside while a child fails raises the child's error only;
    a loop that maps such errors and goes on must ask, or it never ends.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Signal:
    """Wakes everybody who waits, and remembers nothing but how often: wait first, then look again.

    For "something changed, compare what is with what should be"; a missed wake-up costs one tick, unless who looked
    compares ``count`` with what it was before.

    Attributes:
        count: how often it was notified.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all that wait now."""
        self.count += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_notified(self, *, within_s: float) -> bool:
        """Wait for the next notify; False when ``within_s`` passed without one. Cancellation: safe."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(within_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True
