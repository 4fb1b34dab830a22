"""Uploads that outlive the call that began them, so that a client whose connection broke goes on where it was.

An upload is one write into the store that is fed by any number of calls, one at a time. Between two calls it is
parked: the store waits with what it has. A parked upload ends when nobody comes back within the idle time, or when
somebody else begins to upload the same content, who must not wait for it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from corral.blobs.feed import Abandoned
from corral.blobs.ports import BlobWriter
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest
from corral.kernel.errors import CapacityError, Conflict

_END = b""


@dataclass(frozen=True, slots=True)
class UploadKey:
    """What names an upload: the client's own word for it, below its tenant, and the content."""

    tenant: str
    name: str
    digest: Digest


@dataclass(slots=True, eq=False)
class Upload:
    """One content on its way into the store.

    Attributes:
        received_bytes: how much of the content (uncompressed) was taken.
        stored: done once the store has all of it, or needs no more; or it failed.
    """

    key: UploadKey
    touched_s: float
    received_bytes: int = 0
    turn: int = 0
    parked: bool = True
    stored: "asyncio.Task[Exception | None] | None" = None
    _pieces: "asyncio.Queue[bytes]" = field(default_factory=lambda: asyncio.Queue(1))
    _abandoned: bool = False

    async def feed(self, piece: bytes) -> None:
        """Give the next piece; waits while the store is slower. Cancellation: the piece was not taken."""
        if piece:
            await self._put(piece)
            self.received_bytes += len(piece)

    async def finish(self) -> None:
        """Say that this was all, and wait until it is stored. Raises what the store raises."""
        await self._put(_END)
        await self.wait_stored()

    async def wait_stored(self) -> None:
        """Raises what the store raises. Cancellation: safe, the upload goes on."""
        assert self.stored is not None  # set right after it is made
        await asyncio.wait({self.stored})
        if (failure := self.stored.result()) is not None:
            raise failure

    @property
    def ended(self) -> bool:
        """The store takes no more."""
        return self.stored is not None and self.stored.done()

    def abandon(self) -> None:
        """The content will not come to its end: the store drops what it has."""
        self._abandoned = True
        while not self._pieces.empty():
            self._pieces.get_nowait()
        self._pieces.put_nowait(_END)

    async def content(self) -> AsyncGenerator[bytes, None]:
        """What the store reads."""
        while (piece := await self._pieces.get()) != _END:
            yield piece
        if self._abandoned:
            raise Abandoned

    def drain(self) -> None:
        """Let a call that waits to give a piece go on: the store needs no more."""
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def _put(self, piece: bytes) -> None:
        if not self.ended:
            await self._pieces.put(piece)


class Uploads:
    """All uploads of this scheduler. Runs its writes in a task group: ``async with uploads.running()``."""

    def __init__(self, store: BlobWriter, clock: Clock, *, most: int, idle_s: float) -> None:
        self._store = store
        self._clock = clock
        self._most = most
        self._idle_s = idle_s
        self._open: dict[UploadKey, Upload] = {}
        self._group: asyncio.TaskGroup | None = None
        self._stirred = Signal()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """In the block uploads are taken; at its end those that are not complete are dropped."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                sweeper = group.create_task(self._sweep(), name="reapi:uploads")
                try:
                    yield
                finally:
                    self._group = None
                    sweeper.cancel()
                    for upload in list(self._open.values()):
                        upload.abandon()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the group is ours, its first failure is the block's

    def find(self, key: UploadKey) -> Upload | None:
        """An upload that was begun and may go on."""
        return self._open.get(key)

    async def wait_alone(self, key: UploadKey) -> None:
        """Return when nobody else is sending this content: whoever comes second waits with nothing in memory.

        Cancellation: safe.
        """
        while (other := self._active(key)) is not None:
            assert other.stored is not None  # set right after it is made
            await asyncio.wait({other.stored}, timeout=self._idle_s)

    def _active(self, key: UploadKey) -> Upload | None:
        same = (other for other in self._open.values() if _same_content(other, key) and other.key != key)
        return next((other for other in same if not (other.parked or other.ended)), None)

    def begin(self, key: UploadKey) -> Upload:
        """A new upload, in the place of one with the same name. Parked ones of the same content end.

        Raises CapacityError when too many are open.
        """
        if self._group is None:
            raise CapacityError("the scheduler is stopping")
        if (same := self._open.get(key)) is not None:
            self._drop(same)
        for other in list(self._open.values()):
            if other.parked and _same_content(other, key):
                self._drop(other)
        if len(self._open) >= self._most:
            raise CapacityError(f"{self._most} uploads are open already, the limit reapi.uploads of this scheduler")
        upload = Upload(key, self._clock.monotonic_s())
        self._open[key] = upload
        upload.stored = self._group.create_task(self._write(upload), name=f"upload:{key.digest.hash[:12]}")
        upload.stored.add_done_callback(lambda _task: upload.drain())
        return upload

    @asynccontextmanager
    async def turn_of(self, upload: Upload) -> AsyncIterator[int]:
        """In the block this call feeds the upload; a later one takes over, and ``check_turn`` tells this one."""
        upload.turn += 1
        turn = upload.turn
        upload.parked = False
        upload.touched_s = self._clock.monotonic_s()
        try:
            yield turn
        finally:
            if upload.turn == turn:
                upload.parked = True
                upload.touched_s = self._clock.monotonic_s()
                if any(other is not upload and _same_content(other, upload.key) for other in self._open.values()):
                    self._drop(upload)  # somebody else waits for their turn to write it

    def check_turn(self, upload: Upload, turn: int) -> None:
        """Raises Conflict when another call goes on with this upload."""
        if upload.turn != turn:
            raise Conflict("another call goes on with this upload")
        upload.touched_s = self._clock.monotonic_s()

    async def _write(self, upload: Upload) -> Exception | None:
        try:
            await self._store.write(upload.key.tenant, upload.key.digest, upload.content())
        except Abandoned:
            return Conflict("the upload was dropped: nothing came for too long, or somebody else began it anew")
        except Exception as error:  # noqa: BLE001 - it belongs to the call that waits; the others go on
            return error
        finally:
            if self._open.get(upload.key) is upload:
                del self._open[upload.key]
        return None

    async def _sweep(self) -> None:
        """Drop what got nothing for too long; one turn every quarter of that time."""
        while True:
            await self._stirred.wait_notified(within_s=self._idle_s / 4)
            before_s = self._clock.monotonic_s() - self._idle_s
            for upload in [one for one in self._open.values() if one.touched_s <= before_s]:
                self._drop(upload)

    def _drop(self, upload: Upload) -> None:
        upload.abandon()
        if self._open.get(upload.key) is upload:
            del self._open[upload.key]


def _same_content(upload: Upload, key: UploadKey) -> bool:
    return (upload.key.tenant, upload.key.digest) == (key.tenant, key.digest)
