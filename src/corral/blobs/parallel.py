"""Many small pieces of work, a bounded number at once."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def run_all(work: Iterable[Coroutine[Any, Any, None]], *, at_once: int) -> None:
    """Run every coroutine of ``work``, which is asked for the next only when there is room for it.

    Raises: the first error; the others that run are cancelled first, the rest is not begun.
    Cancellation: cancels all that run.
    """
    room = asyncio.Semaphore(at_once)

    async def run(one: Coroutine[Any, Any, None]) -> None:
        try:
            await one
        finally:
            room.release()

    try:
        async with asyncio.TaskGroup() as group:
            await room.acquire()
            for one in work:
                group.create_task(run(one))
                await room.acquire()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
