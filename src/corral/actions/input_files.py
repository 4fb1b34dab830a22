"""The files of input roots on this worker's disk: one per tenant, digest and executable bit, shared by all roots.

They are copies of the store's, so whatever becomes of one, the store is as it was. A process that was killed may leave
some half written; whoever opens the folder next empties it.
"""

import asyncio
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Final

from corral.actions.errors import MissingBlobs
from corral.blobs.content import read_bytes
from corral.blobs.parallel import run_all
from corral.blobs.ports import BlobReader
from corral.blobs.turns import Turns
from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest
from corral.kernel.errors import NotFound, StoreUnavailable

Wanted = tuple[Digest, bool]
"""A content, and whether its file is executable."""

_SMALL_BYTES: Final = 1024 * 1024
_BATCH: Final = 32
_BATCH_BYTES: Final = 2 * 1024 * 1024
_CLEANUP_WITHIN_S: Final = 10.0
FILE_MODE: Final = 0o644
PROGRAM_MODE: Final = 0o755


class InputFiles:
    """The folder. Owned by one process; ``open_empty`` it first."""

    def __init__(self, folder: Path, blobs: BlobReader, *, total_bytes: int, at_once: int) -> None:
        self._folder = folder
        self._blobs = blobs
        self._total_bytes = total_bytes
        self._at_once = at_once
        self._room = asyncio.Semaphore(at_once)
        self._held: OrderedDict[str, int] = OrderedDict()  # path to size, least recently used first
        self._held_bytes = 0
        self._pins: Counter[str] = Counter()
        self._turns: Turns[str] = Turns()
        self._incoming = 0
        self._folders: set[str] = set()
        self.fetched = 0

    def open_empty(self) -> None:
        """Make the folder, without what a predecessor left. Blocking."""
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(mode=0o755, parents=True)

    def path(self, tenant: str, wanted: Wanted) -> str:
        """Where the file lies, or would."""
        digest, executable = wanted
        name = f"{digest.function.value}-{digest.hash}-{digest.size_bytes}{'-x' if executable else ''}"
        return f"{self._folder}/{tenant}/{digest.hash[:2]}/{name}"

    async def hold(self, tenant: str, files: Iterable[Wanted]) -> list[str]:
        """Have all of them here, and keep them until ``release_nowait`` gets the answer back.

        Raises: MissingBlobs with all that are not stored; StoreUnavailable, QuotaExceeded.
        Cancellation: nothing is held; what came already stays.
        """
        paths = {self.path(tenant, wanted): wanted for wanted in files}
        held = list(paths)
        self._pins.update(held)
        try:
            lacking = []
            for path, wanted in paths.items():
                if path in self._held:
                    self._held.move_to_end(path)
                else:
                    lacking.append((path, wanted))
            if lacking:
                await self._fetch(tenant, lacking)
        except BaseException:
            self.release_nowait(held)
            raise
        return held

    def release_nowait(self, held: Sequence[str]) -> None:
        """They are not used any more; the oldest leave when there are too many bytes."""
        self._pins.subtract(held)
        for path in held:
            if self._pins[path] <= 0:
                del self._pins[path]
        self._evict()

    async def _fetch(self, tenant: str, lacking: Sequence[tuple[str, Wanted]]) -> None:
        wanted = {digest for _, (digest, _) in lacking if digest.size_bytes}
        if missing := await self._blobs.find_missing(tenant, wanted) if wanted else ():
            raise MissingBlobs(missing)
        await run_all((self._fetch_batch(tenant, batch) for batch in _batches(lacking)), at_once=self._at_once)

    async def _fetch_batch(self, tenant: str, batch: Sequence[tuple[str, Wanted]]) -> None:
        """Fetch one large file, or some small ones. Whoever needs one of them too waits until it is here."""
        async with AsyncExitStack() as turns:
            for path, _ in batch:  # in the order of their names, so that no two wait for each other
                await turns.enter_async_context(self._turns.hold(path))
            lacking = [(path, wanted) for path, wanted in batch if path not in self._held]
            try:
                for path, _ in lacking:
                    self._make_folder(path)
                if len(lacking) == 1 and lacking[0][1][0].size_bytes > _SMALL_BYTES:
                    await self._write_large(tenant, *lacking[0])
                elif lacking:
                    await self._write_small(tenant, lacking)
            except OSError as error:
                raise StoreUnavailable(f"an input cannot be kept on this worker: {error.strerror}") from error

    async def _write_small(self, tenant: str, files: Sequence[tuple[str, Wanted]]) -> None:
        contents: dict[Digest, bytes] = {}

        async def read(digest: Digest) -> None:
            async with self._room:
                try:
                    contents[digest] = await read_bytes(self._blobs, tenant, digest, bytes_max=_SMALL_BYTES)
                except NotFound:
                    raise MissingBlobs([digest]) from None

        wanted = {digest for _, (digest, _) in files if digest.size_bytes}
        await run_all((read(digest) for digest in wanted), at_once=_BATCH)
        small = [_SmallFile(self._half(), path, _mode(each), contents.get(each[0], b"")) for path, each in files]
        await asyncio.to_thread(_write_together, small)
        for path, (digest, _) in files:
            self._arrived(path, digest)

    async def _write_large(self, tenant: str, path: str, wanted: Wanted) -> None:
        digest, half = wanted[0], self._half()
        with _create(half, _mode(wanted)) as file:
            try:
                async with self._room, aclosing(self._blobs.read(tenant, digest)) as pieces:
                    async for piece in pieces:
                        await asyncio.to_thread(_write_whole, file, piece)
                os.rename(half, path)
            except NotFound:
                raise MissingBlobs([digest]) from None
            finally:
                await finish(asyncio.to_thread(_remove, half), within_s=_CLEANUP_WITHIN_S)
        self._arrived(path, digest)

    def _arrived(self, path: str, digest: Digest) -> None:
        self.fetched += 1
        self._held[path] = digest.size_bytes
        self._held_bytes += digest.size_bytes

    def _half(self) -> str:
        self._incoming += 1
        return f"{self._folder}/incoming-{self._incoming}"

    def _make_folder(self, path: str) -> None:
        if (folder := os.path.dirname(path)) not in self._folders:
            os.makedirs(folder, mode=0o755, exist_ok=True)
            self._folders.add(folder)

    def _evict(self) -> None:
        if self._held_bytes <= self._total_bytes:
            return
        for path in list(self._held):
            if self._held_bytes <= self._total_bytes:
                return
            if path not in self._pins:
                self._held_bytes -= self._held.pop(path)
                _remove(path)


@dataclass(frozen=True, slots=True)
class _SmallFile:
    half: str
    path: str
    mode: int
    data: bytes


def _batches(files: Sequence[tuple[str, Wanted]]) -> Iterator[list[tuple[str, Wanted]]]:
    """Each large file alone, small ones together."""
    batch: list[tuple[str, Wanted]] = []
    total_bytes = 0
    for path, wanted in sorted(files, key=itemgetter(0)):
        size_bytes = wanted[0].size_bytes
        if size_bytes > _SMALL_BYTES:
            yield [(path, wanted)]
            continue
        if len(batch) == _BATCH or total_bytes + size_bytes > _BATCH_BYTES:
            yield batch
            batch, total_bytes = [], 0
        batch.append((path, wanted))
        total_bytes += size_bytes
    if batch:
        yield batch


def _mode(wanted: Wanted) -> int:
    return PROGRAM_MODE if wanted[1] else FILE_MODE


def _create(path: str, mode: int) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)  # whatever the umask says
    return os.fdopen(descriptor, "wb", 0)


def _write_together(files: Sequence[_SmallFile]) -> None:
    for each in files:
        try:
            with _create(each.half, each.mode) as file:
                _write_whole(file, each.data)
            os.rename(each.half, each.path)
        except BaseException:
            _remove(each.half)
            raise


def _write_whole(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
