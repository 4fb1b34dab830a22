"""One stream of content for several stores at once, each at its own pace and each under its own deadline."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final, Self

from corral.blobs.content import InMemory
from corral.blobs.machine import PIECE_BYTES, content_differs, content_too_long
from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest, Digester

Sink = Callable[[AsyncIterable[bytes]], Coroutine[Any, Any, None]]
"""Takes a whole stream; may return early when it needs no more."""

_END: Final = b""


class Abandoned(Exception):
    """The content will not come to its end: whoever gave it was cancelled."""


async def verified(content: AsyncIterable[bytes], digest: Digest) -> AsyncIterator[bytes]:
    """``content`` as it is, but it ends in InvalidSpec unless it was what ``digest`` says; skips empty pieces."""
    digester = Digester(digest.function)
    async for piece in content:
        if digester.size_bytes + len(piece) > digest.size_bytes:
            raise content_too_long(digest)
        digester.update(piece)
        if piece:
            yield piece
    if (found := digester.digest()) != digest:
        raise content_differs(digest, found=found)


def paced(content: AsyncIterable[bytes], deadline: asyncio.Timeout, *, within_s: float) -> AsyncIterable[bytes]:
    """``content`` as it is; ``deadline`` runs only while the *consumer* works, anew for every piece."""
    if isinstance(content, InMemory) and len(content.data) <= PIECE_BYTES:
        return content  # nobody waits for its one piece
    return _paced(content, deadline, within_s=within_s)


async def _paced(content: AsyncIterable[bytes], deadline: asyncio.Timeout, *, within_s: float) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    deadline.reschedule(None)
    async for piece in content:
        deadline.reschedule(loop.time() + within_s)
        yield piece
        deadline.reschedule(None)
    deadline.reschedule(loop.time() + within_s)


async def fan_out(
    content: AsyncIterable[bytes], sinks: Sequence[Sink], *, abort_within_s: float
) -> list[Exception | None]:
    """Give all of ``content`` to every sink; returns, per sink, the error it ended with.

    A sink that ends early or fails gets no more and does not disturb the others; when none is left the rest of the
    content is not read. The slowest sink sets the pace; at most one piece waits for it.

    Raises: what ``content`` raises, after it was raised inside every sink and they have ended.
    Cancellation: raises Abandoned inside every sink and waits ``abort_within_s`` for them to clean up.
    """
    stirred = asyncio.Event()
    feeds = [_Feed(stirred) for _ in sinks]
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(_run(sink, feed)) for sink, feed in zip(sinks, feeds, strict=True)]
            try:
                await _pour(content, feeds, stirred)
            except BaseException as error:
                for feed in feeds:
                    feed.abandon(error if isinstance(error, Exception) else Abandoned())
                await finish(_ended(running), within_s=abort_within_s)
                raise
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # sinks return theirs, so it is the content's
    return [task.result() for task in running]


class _Feed:
    """A stream with a writing end, at most one piece waiting."""

    def __init__(self, stirred: asyncio.Event) -> None:
        """``stirred`` is set when the reader asks for the first time, and when it stops."""
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._error: Exception | None = None
        self._stirred = stirred
        self.wanted = False
        self.stopped = False

    async def push(self, piece: bytes) -> None:
        if not self.stopped:
            await self._pieces.put(piece)

    def abandon(self, error: Exception) -> None:
        self._error = error
        self._drain()
        self._pieces.put_nowait(_END)

    def stop(self) -> None:
        """The reader needs no more; whoever waits to push goes on."""
        self.stopped = True
        self._stirred.set()
        self._drain()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self.wanted = True
        self._stirred.set()
        piece = await self._pieces.get()
        if self._error is not None:
            raise self._error
        if piece == _END:
            raise StopAsyncIteration
        return piece

    def _drain(self) -> None:
        while not self._pieces.empty():
            self._pieces.get_nowait()


async def _pour(content: AsyncIterable[bytes], feeds: Sequence[_Feed], stirred: asyncio.Event) -> None:
    while not any(feed.wanted for feed in feeds):  # a sink that has the content already leaves it unread
        if all(feed.stopped for feed in feeds):
            return
        await stirred.wait()
        stirred.clear()
    async for piece in content:
        if not piece:
            continue
        for feed in feeds:
            await feed.push(piece)
        if all(feed.stopped for feed in feeds):
            return
    for feed in feeds:
        await feed.push(_END)


async def _run(sink: Sink, feed: _Feed) -> Exception | None:
    try:
        await sink(feed)
    except Exception as error:  # noqa: BLE001 - a sink's failure is its result; the caller judges it
        return error
    finally:
        feed.stop()
    return None


async def _ended(tasks: Sequence[asyncio.Task[Exception | None]]) -> None:
    await asyncio.wait(tasks)
