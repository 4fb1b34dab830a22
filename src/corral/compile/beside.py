"""Work that goes on beside the daemon's requests: tasks of one group, and a few threads for what blocks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import structlog

T = TypeVar("T")
_log: Final = structlog.get_logger("compile")


class Beside:
    """Life: ``running()`` is a context; leaving it waits for all that was started."""

    def __init__(self, threads: int) -> None:
        self._count = threads
        self._group: asyncio.TaskGroup
        self._threads: ThreadPoolExecutor

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work may be started within this block, and by work that was started in it."""
        with ThreadPoolExecutor(self._count, thread_name_prefix="store") as self._threads:
            async with asyncio.TaskGroup() as self._group:
                yield

    def start(self, work: Coroutine[Any, Any, None], *, failed: Callable[[], None] = lambda: None) -> None:
        """Run ``work``. A mistake of ours in it is logged, ``failed`` is called, and the others go on."""
        self._group.create_task(_bounded(work, failed))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What blocks."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _bounded(work: Coroutine[Any, Any, None], failed: Callable[[], None]) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 (the request boundary: the compiler answers instead of us)
        _log.warning("request failed", error=f"{type(error).__name__}: {error}")
        failed()
