"""Blobs as files of one folder that several processes of a machine share.

A blob is written to a half-written file, verified while it is written, synced, renamed into place, and the folder
synced. Its modification time is its last use. What is written through ``write_back`` is synced later, all together.
See disk_layout for the folder, disk_files for locking, disk_settling for what is written back, disk_recent for what
is answered without the disk.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

import structlog

from corral.blobs.adapters.disk_files import DiskFiles
from corral.blobs.adapters.disk_group import Gathering, SmallWrite, SmallWrites
from corral.blobs.adapters.disk_layout import disk_errors, is_settled
from corral.blobs.adapters.disk_recent import LONG_AGO_S, RecentBlobs, Use
from corral.blobs.adapters.disk_settling import Settling
from corral.blobs.adapters.disk_transfer import Corrupt, Download, Upload
from corral.blobs.content import InMemory, collect
from corral.blobs.machine import (
    PIECE_BYTES,
    check_blob_size,
    check_digest,
    check_digests,
    check_range,
    check_tenant,
    content_too_long,
    is_whole,
    range_end,
)
from corral.blobs.model import CleanReport, StoreLimits, StoreUsage, WritePolicy
from corral.blobs.ports import BlobStore
from corral.blobs.turns import Turns
from corral.kernel.clock import Clock, SystemClock
from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest
from corral.kernel.errors import BlobCorrupt, CorralError

P = ParamSpec("P")
T = TypeVar("T")

SMALL_BYTES: Final = 64 * 1024
"""Content up to this size is gathered in memory and written in one step."""
_CLEANUP_WITHIN_S: Final = 10.0
_TOUCH_WHILE_READING_S: Final = 20.0
_FIND_BATCH: Final = 256

_log = structlog.get_logger(__name__)


class DiskBlobs:
    """A BlobStore and BlobJanitor over one folder. Use as ``async with DiskBlobs(root) as store``."""

    def __init__(
        self,
        root: Path,
        *,
        limits: StoreLimits | None = None,
        quota_bytes: Callable[[str], int | None] | None = None,
        grace_s: float = 60.0,
        settle_s: float = 5.0,
        threads: int = 4,
        recent_blobs: int = 10_000,
        recent_bytes: int = 4 * 1024**2,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            quota_bytes: a tenant's own quota; None (or without it) means ``limits.tenant_bytes``.
            grace_s: a blob used within the last so many seconds is never evicted.
            settle_s: what is written back is on the disk after so long.
            threads: how many disk operations run at once.
            recent_blobs: of so many blobs the uses of the last seconds are remembered,
            recent_bytes: and the contents of small ones, so many bytes together.
        """
        self._limits = limits or StoreLimits()
        self._quota_bytes = quota_bytes or (lambda _tenant: None)
        self._clock = clock or SystemClock()
        self._files = DiskFiles(root, grace_s=grace_s)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="blobs-disk")
        self._settling = Settling(self._files.layout, self._threads, every_s=settle_s)
        self._recent = RecentBlobs(
            self._files.removals,
            fresh_s=self._files.touch_every_s,
            blobs_max=recent_blobs,
            content_bytes_max=recent_bytes,
        )
        self._uses = Gathering(self._threads, self._use_together)
        self._small_reads = Gathering(self._threads, self._begin_together)
        self._small_writes = Gathering(self._threads, SmallWrites(self._files, self._settling).write)
        self._turns: Turns[tuple[str, Digest]] = Turns()
        self._reading: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        """Raises UnsupportedVersion for a folder of another layout, StoreUnavailable when it cannot be used."""
        with disk_errors(f"opening the store at {self._files.layout.root}"):
            forgotten = await self._in_thread(self._files.open)
        if forgotten:
            _log.info("forgot half-written blobs of a process that died", blobs=forgotten)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await finish(self._close(), within_s=_CLEANUP_WITHIN_S)

    @property
    def write_back(self) -> BlobStore:
        """The same blobs, for content that can be made again: what is written through this is durable some seconds
        later. A blob that ``DiskBlobs`` itself says it holds is durable, however it was written."""
        return _WriteBack(self)

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        return await self.missing_of(tenant, digests, WritePolicy.THROUGH)

    async def missing_of(self, tenant: str, digests: Iterable[Digest], policy: WritePolicy) -> frozenset[Digest]:
        """See ``find_missing``; ``policy`` says what is asked of those that are there."""
        check_tenant(tenant)
        unknown = self._recent.unknown(tenant, digests, policy, self._clock.now_s())
        check_digests(unknown)
        missing: set[Digest] = set()
        with disk_errors("looking for blobs"):
            for start in range(0, len(unknown), _FIND_BATCH):
                batch = unknown[start : start + _FIND_BATCH]
                seen = self._recent.look()
                uses = await self._in_thread(self._uses_of, tenant, batch, policy)
                for digest, use in zip(batch, uses, strict=True):
                    if use is None:
                        missing.add(digest)
                    else:
                        self._recent.remember((tenant, digest), use, seen)
        return frozenset(missing)

    async def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        check_tenant(tenant)
        check_digest(digest)
        check_range(offset, length)
        if (known := self._recent.content(tenant, digest, self._clock.now_s())) is not None:
            if piece := known[offset : range_end(digest, offset, length)]:
                yield piece
            return
        path = self._files.layout.blob(tenant, digest)
        download = Download(
            path,
            digest,
            start=min(offset, digest.size_bytes),
            end=range_end(digest, offset, length),
            verify=is_whole(digest, offset, length),
        )
        self._reading[path] += 1
        try:
            with disk_errors(f"reading blob {digest}"):
                used_s = self._clock.now_s()
                seen = self._recent.look()
                use, piece = await self._first_piece(download, path, used_s)
                if download.exhausted and is_whole(digest, offset, length):
                    self._recent.remember((tenant, digest), use, seen, piece)
                while piece:
                    yield piece
                    if download.exhausted:
                        break
                    if self._clock.now_s() - used_s > _TOUCH_WHILE_READING_S:
                        used_s = self._clock.now_s()
                        await self._in_thread(download.touch, used_s)
                    piece = await self._in_thread(download.next)
        except Corrupt as corrupt:
            await finish(self._in_thread(self._files.remove, tenant, digest), within_s=_CLEANUP_WITHIN_S)
            _log.error("removed a corrupt blob", tenant=tenant, digest=str(digest), reason=corrupt.reason)
            raise BlobCorrupt(
                f"the stored bytes of blob {digest} do not match its digest ({corrupt.reason}); the blob was removed",
                cure="Check the disk; store the content again.",
                digest=str(digest),
            ) from None
        finally:
            self._reading[path] -= 1
            if not self._reading[path]:
                del self._reading[path]
            if not download.closed:
                await finish(self._in_thread(download.close), within_s=_CLEANUP_WITHIN_S)

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        await self.put(tenant, digest, content, WritePolicy.THROUGH)

    async def put(self, tenant: str, digest: Digest, content: AsyncIterable[bytes], policy: WritePolicy) -> None:
        """See ``write``."""
        check_tenant(tenant)
        check_digest(digest)
        check_blob_size(digest, self._limits)
        async with self._turns.hold((tenant, digest)):
            if not self._recent.unknown(tenant, (digest,), policy, self._clock.now_s()):
                return
            if not (isinstance(content, InMemory) and digest.size_bytes <= SMALL_BYTES):
                with disk_errors("looking for a blob"):
                    if await self._uses.ask((tenant, digest, policy)):
                        return
            upload = self._files.new_upload(tenant, digest, policy)
            if digest.size_bytes <= SMALL_BYTES:
                data = content.data if isinstance(content, InMemory) else await collect(content, digest)
                await self._write_small(upload, data)
            else:
                await self._write_stream(upload, digest, content)
                if policy is WritePolicy.BACK:
                    self._settling.add([self._files.layout.blob(tenant, digest)])
        if policy is WritePolicy.BACK:
            self._settling.expect()

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        check_tenant(tenant)
        with disk_errors("deleting blobs"):
            for digest in digests:
                check_digest(digest)
                await self._in_thread(self._files.remove, tenant, digest)

    async def clean(self, *, now_s: float) -> CleanReport:
        """As the port says; also counts every tenant's bytes anew. Cancellation: safe, stops at the next blob."""
        stop = threading.Event()
        try:
            with disk_errors("evicting blobs"):
                return await self._in_thread(self._clean, now_s, stop)
        finally:
            stop.set()
            self._settling.expect()

    async def usage(self, tenant: str | None = None) -> StoreUsage:
        if tenant is not None:
            check_tenant(tenant)
        with disk_errors("counting blobs"):
            return await self._in_thread(self._files.usage, tenant)

    async def _write_small(self, upload: Upload, data: bytes) -> None:
        """In one step with others, unless it is there already; the content is verified then."""
        seen = self._recent.look()
        small = SmallWrite(upload, data, self._quota_of(upload.tenant), self._clock.now_s())
        with disk_errors(f"writing blob {upload.digest}"):
            use = await self._small_writes.ask(small)
        self._recent.remember((upload.tenant, upload.digest), use, seen, data if upload.is_blob else None)

    async def _write_stream(self, upload: Upload, digest: Digest, content: AsyncIterable[bytes]) -> None:
        try:
            with disk_errors(f"writing blob {digest}"):
                await self._in_thread(upload.begin, self._quota_of(upload.tenant))
            batch: list[bytes] = []
            batch_bytes = received_bytes = 0
            async for piece in content:
                batch.append(piece)
                batch_bytes += len(piece)
                received_bytes += len(piece)
                if received_bytes > digest.size_bytes:
                    raise content_too_long(digest)
                if batch_bytes >= PIECE_BYTES:
                    with disk_errors(f"writing blob {digest}"):
                        await self._in_thread(upload.append, batch)
                    batch, batch_bytes = [], 0
            with disk_errors(f"writing blob {digest}"):
                await self._in_thread(upload.append, batch)
                await self._in_thread(upload.commit, self._clock.now_s())
        finally:
            if not upload.closed:
                await finish(self._in_thread(upload.discard), within_s=_CLEANUP_WITHIN_S)

    async def _first_piece(self, download: Download, path: str, now_s: float) -> tuple[Use, bytes]:
        if download.size_bytes <= SMALL_BYTES:
            return await self._small_reads.ask((download, path, now_s))
        return await self._in_thread(self._begin_read, download, path, now_s)

    def _begin_read(self, download: Download, path: str, now_s: float) -> tuple[Use, bytes]:
        status, piece = download.begin()
        used_s = self._files.touch(path, used_s=status.st_mtime, now_s=now_s)
        return Use(used_s or LONG_AGO_S, is_settled(status)), piece

    def _begin_together(self, asked: list[tuple[Download, str, float]]) -> list[tuple[Use, bytes] | Exception]:
        answers: list[tuple[Use, bytes] | Exception] = []
        for download, path, now_s in asked:
            try:
                answers.append(self._begin_read(download, path, now_s))
            except (OSError, Corrupt, CorralError) as error:
                answers.append(error)
        return answers

    def _uses_of(self, tenant: str, digests: list[Digest], policy: WritePolicy) -> list[Use | None]:
        now_s = self._clock.now_s()
        return [self._files.use(tenant, digest, now_s, policy) for digest in digests]

    def _use_together(self, asked: list[tuple[str, Digest, WritePolicy]]) -> list[bool | Exception]:
        now_s = self._clock.now_s()
        answers: list[bool | Exception] = []
        for tenant, digest, policy in asked:
            try:
                answers.append(self._files.use(tenant, digest, now_s, policy) is not None)
            except OSError as error:
                answers.append(error)
        return answers

    def _clean(self, now_s: float, stop: threading.Event) -> CleanReport:
        report = self._files.clean(self._limits, now_s=now_s, is_pinned=self._reading.__contains__, stop=stop)
        self._settling.add(self._files.unsettled)  # those of processes that died, too
        return report

    def _quota_of(self, tenant: str) -> int | None:
        own = self._quota_bytes(tenant)
        return self._limits.tenant_bytes if own is None else own

    async def _close(self) -> None:
        self._settling.close()
        await self._in_thread(self._files.close)
        await asyncio.to_thread(self._threads.shutdown)

    async def _in_thread(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: step(*args, **kwargs))


class _WriteBack:
    """See ``DiskBlobs.write_back``."""

    def __init__(self, disk: DiskBlobs) -> None:
        self._disk = disk

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        return await self._disk.missing_of(tenant, digests, WritePolicy.BACK)

    def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        return self._disk.read(tenant, digest, offset=offset, length=length)

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        await self._disk.put(tenant, digest, content, WritePolicy.BACK)

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        await self._disk.delete(tenant, digests)
