"""The files of input roots on this worker's disk: one per tenant, digest and executable bit, shared by all roots.

They are copies of the store's, so whatever becomes of one, the store is as it was. A process that was killed may leave
some half written; whoever opens the folder next empties it.
"""

import asyncio
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import aclosing, suppress
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
        await run_all((self._fetch_one(tenant, path, each) for path, each in lacking), at_once=self._at_once)

    async def _fetch_one(self, tenant: str, path: str, wanted: Wanted) -> None:
        async with self._turns.hold(path):
            if path in self._held:
                return
            digest, executable = wanted
            try:
                await self._write(tenant, digest, path, PROGRAM_MODE if executable else FILE_MODE)
            except NotFound:
                raise MissingBlobs([digest]) from None
            except OSError as error:
                raise StoreUnavailable(f"an input cannot be kept on this worker: {error.strerror}") from error
            self.fetched += 1
            self._held[path] = digest.size_bytes
            self._held_bytes += digest.size_bytes

    async def _write(self, tenant: str, digest: Digest, path: str, mode: int) -> None:
        self._incoming += 1
        half = f"{self._folder}/incoming-{self._incoming}"
        if (folder := os.path.dirname(path)) not in self._folders:
            os.makedirs(folder, mode=0o755, exist_ok=True)
            self._folders.add(folder)
        if digest.size_bytes <= _SMALL_BYTES:
            data = (
                b"" if not digest.size_bytes else await read_bytes(self._blobs, tenant, digest, bytes_max=_SMALL_BYTES)
            )
            await asyncio.to_thread(_write_small, half, path, mode, data)
            return
        with _create(half, mode) as file:
            try:
                async with aclosing(self._blobs.read(tenant, digest)) as pieces:
                    async for piece in pieces:
                        await asyncio.to_thread(_write_whole, file, piece)
                os.rename(half, path)
            except BaseException:
                await finish(asyncio.to_thread(_remove, half), within_s=_CLEANUP_WITHIN_S)
                raise

    def _evict(self) -> None:
        if self._held_bytes <= self._total_bytes:
            return
        for path in list(self._held):
            if self._held_bytes <= self._total_bytes:
                return
            if path not in self._pins:
                self._held_bytes -= self._held.pop(path)
                _remove(path)


def _create(path: str, mode: int) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)  # whatever the umask says
    return os.fdopen(descriptor, "wb", 0)


def _write_small(half: str, path: str, mode: int, data: bytes) -> None:
    try:
        with _create(half, mode) as file:
            _write_whole(file, data)
        os.rename(half, path)
    except BaseException:
        _remove(half)
        raise


def _write_whole(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
