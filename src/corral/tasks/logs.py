"""The live logs of runs, on the scheduler: one writer each, any number of readers, from any offset.

Life of a log: *open* (``<run>.log``, grows) → *closed* (``<run>.closed``, complete) → *sealed* (an immutable blob,
see ``log_archive``, and ``<run>.sealed``, which names it). The files are the truth: a store that was killed at any
instruction finds every log again in the stage that it had.

What a writer appended is visible to readers at once and survives the death of this process; it is on the disk
within ``sync_every_s`` or so (all logs that grew are synced together), and ``durable_bytes`` tells how far. Nothing
in ``append``, ``close`` and ``seal`` awaits, so a log's state never changes halfway; these calls cost a few
microseconds of page cache each.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import structlog

from corral.blobs.ports import BlobStore
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal, raise_if_cancelled
from corral.kernel.digest import Digest
from corral.kernel.errors import Conflict, CorralError, DependencyError, QuotaExceeded, StoreUnavailable, TooLarge
from corral.kernel.units import format_size
from corral.tasks.log_archive import compress, read_archive
from corral.tasks.log_files import LogFiles, LogKey, SealedLog, pieces

__all__ = ["LogConfig", "LogKey", "LogStore", "SealedLog"]

_IDLE_S: Final = 3600.0
_NEAR_BYTES: Final = 64 * 1024  # so close to its end a log is in the page cache: read it on the loop
_FAR_BYTES: Final = 1024 * 1024
_SEALED_AT_ONCE: Final = 16
_logger = structlog.get_logger("corral.tasks.logs")

OnSealed = Callable[[Sequence[tuple[LogKey, SealedLog]]], Awaitable[None]]


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the log store.

    Attributes:
        log_bytes_max: what a run writes beyond this is dropped, and the log says so.
        piece_bytes_max: the largest single append.
        sync_every_s: how often logs that grew are brought to the disk.
        seal_grace_s: how long the log of a run that the queue ended waits for its worker's last bytes.
        seal_retry_s: pause after the blob store refused a log.
        forget_every_s: how often the logs of tasks that the queue forgot are looked for.
    """

    log_bytes_max: int = 256 * 1024**2
    piece_bytes_max: int = 1024**2
    sync_every_s: float = 0.1
    seal_grace_s: float = 5.0
    seal_retry_s: float = 5.0
    forget_every_s: float = 600.0


@dataclass(slots=True, eq=False)
class _Log:
    """What is known of a log that is not sealed.

    ``received`` counts what the writer sent, ``stored`` the file's bytes; they differ only once the log is cut.
    """

    stored: int = 0
    received: int = 0
    durable: int = 0
    cut: bool = False
    closed: bool = False
    readers: int = 0
    changed: Signal = field(default_factory=Signal)


class LogStore:
    """All logs of one scheduler, under ``directory``; ``run()`` must run while it is used.

    ``on_sealed`` hears of sealed logs, some at a time (again after a crash, or when it raised), for whoever keeps the
    digests; a log's own file is removed only when it has returned.
    """

    def __init__(
        self,
        directory: Path,
        blobs: BlobStore,
        clock: Clock,
        config: LogConfig | None = None,
        *,
        on_sealed: OnSealed | None = None,
    ) -> None:
        self._files = LogFiles(directory)
        self._blobs = blobs
        self._clock = clock
        self._config = config or LogConfig()
        self._on_sealed = on_sealed
        self._logs: dict[LogKey, _Log] = {}
        self._dirty: set[LogKey] = set()
        self._wrote = Signal()
        self._synced = Signal()
        self._ended_at_s: dict[LogKey, float] = {}  # ended by the queue; closed when the grace has passed
        self._to_seal: OrderedDict[LogKey, None] = OrderedDict()
        self._upkeep_wanted = Signal()
        self._without_log: OrderedDict[LogKey, None] = OrderedDict()  # runs that ended and never wrote
        self._sealed_count = 0
        self._open: set[LogKey] = set()
        for key, stage in self._files.scan():
            if stage == "closed":
                self._to_seal[key] = None
            elif stage == "log":
                self._open.add(key)

    # ---------------------------------------------------------------------------------------------- writing

    def append(self, key: LogKey, offset: int, data: bytes) -> int:
        """Add ``data`` at ``offset`` and return how many bytes were received in all; a repeat changes nothing.

        Raises:
            Conflict: ``offset`` would leave a hole (``context["received"]`` says where to go on), or the log is closed.
            TooLarge: more than ``piece_bytes_max`` at once.
            QuotaExceeded: the disk is full; what was stored stands, try again later.
            StoreUnavailable: the file could not be written.
        """
        if len(data) > self._config.piece_bytes_max:
            raise TooLarge(f"a piece of {len(data)} bytes is over piece_bytes_max={self._config.piece_bytes_max}")
        log = self._find_or_new(key)
        if log is None or log.closed:
            return self._repeated(key, offset + len(data))
        if offset < 0 or (offset > log.received and not log.cut):
            raise Conflict(
                f"the log of {key.task_id}, run {key.run}, has {log.received} bytes; {offset} would leave a hole",
                received=log.received,
            )
        new = data[log.received - offset :] if offset < log.received else data
        if new:
            self._store(key, log, new, end=offset + len(data))
            self._mark_dirty(key)
            log.changed.notify()
        return log.received

    def durable_bytes(self, key: LogKey) -> int:
        """How many of the received bytes are on the disk."""
        log = self._logs.get(key)
        return log.durable if log is not None else 0

    async def wait_synced(self, *, within_s: float) -> bool:
        """Wait for the next sync of any log. Cancellation: safe."""
        return await self._synced.wait_notified(within_s=within_s)

    def close(self, key: LogKey, size_bytes: int) -> None:
        """No more bytes will come: the log, of ``size_bytes``, is complete. A repeat changes nothing.

        Raises: Conflict when bytes are missing (``context["received"]`` says from where) or superfluous; the log
        stays open.
        """
        log = self._find_or_new(key)
        if log is None or log.closed:
            return
        if not log.cut and log.received != size_bytes:
            message = f"the log of {key.task_id}, run {key.run}, has {log.received} bytes, not {size_bytes}"
            raise Conflict(message, received=log.received) if log.received < size_bytes else Conflict(message)
        self._close(key, log)

    def seal(self, key: LogKey) -> None:
        """The run has ended: close its log after ``seal_grace_s``, unless the worker does so earlier."""
        log = self._find_or_new(key)
        if log is None or log.closed:
            return
        if log.stored == 0:
            self._close(key, log)
            return
        self._ended_at_s.setdefault(key, self._clock.monotonic_s())
        self._upkeep_wanted.notify()

    # ---------------------------------------------------------------------------------------------- reading

    async def read(self, key: LogKey, *, offset: int = 0, follow: bool = False) -> AsyncIterator[bytes]:
        """Stream the log from byte ``offset``; with ``follow``, go on until it is closed.

        Each reader holds one piece of memory (64 KiB, or 1 MiB far from the end). A run without a log gives nothing;
        whoever follows must know that the run has not ended. Any number of readers.

        Raises (on iteration): StoreUnavailable, BlobCorrupt. Cancellation: safe.
        """
        at = max(0, offset)
        while True:
            sealed = self.sealed(key)
            if sealed is not None:
                digest = Digest.parse(sealed.digest)
                async for piece in read_archive(self._blobs, key.tenant, digest, offset=at):
                    yield piece
                return
            log = self._find_or_new(key) if follow else self._find(key)
            piece = await self._piece(key, log, at)
            if piece:
                at += len(piece)
                yield piece
            elif log is not None and follow and not log.closed:
                await self._wait_growth(key, log, at)
            elif self.sealed(key) is None:
                return

    def size(self, key: LogKey) -> int:
        """Bytes that a reader could read now."""
        sealed = self.sealed(key)
        if sealed is not None:
            return sealed.log_bytes
        log = self._find(key)
        return log.stored if log is not None else 0

    def sealed(self, key: LogKey) -> SealedLog | None:
        """The finished log, or None while it is not finished or was never written."""
        return self._files.sealed(key)

    def open_logs(self) -> tuple[LogKey, ...]:
        """Logs that nobody has closed; after a start, those whose run has ended want :meth:`seal`."""
        return tuple(self._open)

    async def sealed_logs(self) -> list[LogKey]:
        """All logs that are finished; those of tasks that are no more want :meth:`forget`."""
        return await asyncio.to_thread(self._files.sealed_keys)

    def forget(self, tenant: str, task_id: str) -> tuple[SealedLog, ...]:
        """Remove all logs of a task; returns the sealed ones, whose blobs the caller may delete."""
        forgotten = []
        for key in self._files.runs(tenant, task_id):
            if (sealed := self.sealed(key)) is not None:
                forgotten.append(sealed)
            self._files.remove(key)
            self._open.discard(key)
            self._ended_at_s.pop(key, None)
            self._to_seal.pop(key, None)
            self._expect_nothing(key)
            if (log := self._logs.pop(key, None)) is not None:
                log.closed = True
                log.changed.notify()
        return tuple(forgotten)

    def statistics(self) -> dict[str, int]:
        """Open logs in memory, logs that wait to be sealed, sealed since the start, readers that follow."""
        return {
            "logs": len(self._logs),
            "to_seal": len(self._to_seal),
            "sealed": self._sealed_count,
            "readers": sum(log.readers for log in self._logs.values()),
        }

    # ---------------------------------------------------------------------------------------------- upkeep

    async def run(self) -> None:
        """Sync, close and seal until cancelled; then sync once more."""
        try:
            async with asyncio.TaskGroup() as upkeep:
                upkeep.create_task(self._keep_syncing(), name="logs:sync")
                upkeep.create_task(self._keep_closing(), name="logs:close")
                upkeep.create_task(self._keep_sealing(), name="logs:seal")
        finally:
            self._files.sync(self._dirty)

    async def _keep_syncing(self) -> None:
        while True:
            if not self._dirty:
                await self._wrote.wait_notified(within_s=_IDLE_S)
                continue
            batch, self._dirty = self._dirty, set()
            marks = {key: log.received for key in batch if (log := self._logs.get(key)) is not None}
            keys = list(marks)
            try:
                async with asyncio.TaskGroup() as syncing:
                    for share in filter(None, (keys[index::4] for index in range(4))):
                        syncing.create_task(asyncio.to_thread(self._files.sync, share))
            except* OSError as errors:
                _logger.warning("logs-not-synced", logs=len(keys), error=str(errors.exceptions[0]))
                self._dirty |= set(keys)
            else:
                for key, received in marks.items():
                    if (log := self._logs.get(key)) is not None:
                        log.durable = max(log.durable, received)
                self._synced.notify()
            raise_if_cancelled()
            await asyncio.sleep(self._config.sync_every_s)

    async def _keep_closing(self) -> None:
        while True:
            now_s = self._clock.monotonic_s()
            for key, ended_s in list(self._ended_at_s.items()):
                if ended_s + self._config.seal_grace_s <= now_s:
                    del self._ended_at_s[key]
                    if (log := self._find(key)) is not None:
                        self._close(key, log)
            first_s = min(self._ended_at_s.values(), default=now_s + _IDLE_S)
            wait_s = max(0.0, first_s + self._config.seal_grace_s - self._clock.monotonic_s())
            await self._upkeep_wanted.wait_notified(within_s=wait_s)

    async def _keep_sealing(self) -> None:
        while True:
            if not self._to_seal:
                await self._upkeep_wanted.wait_notified(within_s=_IDLE_S)
                continue
            keys = list(islice(self._to_seal, _SEALED_AT_ONCE))
            async with asyncio.TaskGroup() as packing:
                tasks = [packing.create_task(self._pack_or_tell(key)) for key in keys]
            packed = [(key, sealed) for key, task in zip(keys, tasks, strict=True) if (sealed := task.result())]
            try:
                if self._on_sealed is not None and packed:
                    await self._on_sealed(packed)
            except CorralError as error:
                _logger.warning("sealed-logs-not-told", logs=len(packed), error=str(error))
                packed = []
            for key, _ in packed:
                self._finish(key)
            if left := [key for key in keys if key in self._to_seal]:
                for key in left:
                    self._to_seal.move_to_end(key)  # it stays readable from its file
                await asyncio.sleep(self._config.seal_retry_s)

    async def _pack_or_tell(self, key: LogKey) -> SealedLog | None:
        try:
            return await self._pack(key)
        except FileNotFoundError:
            self._to_seal.pop(key, None)  # forgotten meanwhile
        except (CorralError, OSError) as error:
            _logger.warning("log-not-sealed", task=key.task_id, run=key.run, error=str(error))
        return None

    async def _pack(self, key: LogKey) -> SealedLog | None:
        """Make the log a blob, and the record that names it; None when it was forgotten meanwhile."""
        sealed = self.sealed(key)
        if sealed is None:
            closed, packed = self._files.path(key, "closed"), self._files.path(key, "packed")
            log_bytes = closed.stat().st_size
            try:
                digest = await asyncio.to_thread(compress, closed, packed)
                await self._blobs.write(key.tenant, digest, pieces(packed))
            finally:
                packed.unlink(missing_ok=True)
            sealed = SealedLog(digest=str(digest), log_bytes=log_bytes)
            await asyncio.to_thread(self._files.write_record, key, sealed)
        if key not in self._to_seal:
            self._files.remove(key)  # forgotten while we worked
            return None
        return sealed

    def _finish(self, key: LogKey) -> None:
        if key not in self._to_seal:
            return  # forgotten while we told of it
        self._files.path(key, "closed").unlink(missing_ok=True)
        del self._to_seal[key]
        self._sealed_count += 1
        if (log := self._logs.pop(key, None)) is not None:
            log.changed.notify()

    # ---------------------------------------------------------------------------------------------- one log

    def _find(self, key: LogKey) -> _Log | None:
        """The log, found on disk when it is new to this process; None when it is sealed or has no byte."""
        log = self._logs.get(key)
        if log is None and (found := self._files.find(key)) is not None:
            stage, stored = found
            limit = self._config.log_bytes_max
            log = _Log(stored=stored, received=min(stored, limit), cut=stored > limit, closed=stage == "closed")
            self._logs[key] = log
            self._mark_dirty(key)
        return log

    def _find_or_new(self, key: LogKey) -> _Log | None:
        """The log, even if it has no byte yet; None when no byte can come any more."""
        log = self._find(key)
        if log is None and key not in self._without_log and self.sealed(key) is None:
            log = self._logs[key] = _Log()
        return log

    def _repeated(self, key: LogKey, end: int) -> int:
        """What a piece that comes after the end is answered: a repeat is no mistake."""
        size = self.size(key)
        if end <= size or size > self._config.log_bytes_max:
            return max(end, size)
        raise Conflict(f"the log of {key.task_id}, run {key.run}, is closed", closed=True)

    def _store(self, key: LogKey, log: _Log, new: bytes, *, end: int) -> None:
        limit = self._config.log_bytes_max
        if not log.cut:
            keep = new[: limit - log.received]
            overflow = len(keep) < len(new)
            marker = f"\n[corral] log cut at {format_size(limit)} (log_bytes_max)\n".encode() if overflow else b""
            try:
                log.stored = self._files.write(key, log.stored, keep + marker)
                self._open.add(key)
            except (QuotaExceeded, DependencyError):
                if log.stored == 0 and self._files.find(key) is None:
                    del self._logs[key]
                raise  # the next append writes over what may have been written beyond log.stored
            log.received += len(keep)
            log.cut = overflow
        if log.cut:
            log.received = max(log.received, end)

    def _close(self, key: LogKey, log: _Log) -> None:
        log.closed = True
        self._open.discard(key)
        self._ended_at_s.pop(key, None)
        if self._files.close(key):
            self._to_seal[key] = None
            self._mark_dirty(key)
        else:
            self._logs.pop(key, None)
            self._expect_nothing(key)
        self._upkeep_wanted.notify()
        log.changed.notify()

    def _expect_nothing(self, key: LogKey) -> None:
        self._without_log[key] = None
        if len(self._without_log) > 10_000:
            self._without_log.popitem(last=False)

    def _mark_dirty(self, key: LogKey) -> None:
        self._dirty.add(key)
        self._wrote.notify()

    async def _piece(self, key: LogKey, log: _Log | None, at: int) -> bytes:
        if log is None or at >= log.stored:
            return b""
        behind = log.stored - at
        if behind <= _NEAR_BYTES:
            return self._files.read(key, at, behind)
        return await asyncio.to_thread(self._files.read, key, at, min(behind, _FAR_BYTES))

    async def _wait_growth(self, key: LogKey, log: _Log, at: int) -> None:
        log.readers += 1
        try:
            if log.stored > at:
                raise StoreUnavailable(f"the log of {key.task_id}, run {key.run}, has lost its file")
            await log.changed.wait_notified(within_s=_IDLE_S)
        finally:
            log.readers -= 1
            if log.readers == 0 and log.stored == 0 and self._logs.get(key) is log:
                del self._logs[key]  # nobody wrote: keep nothing for a key that only a reader named
