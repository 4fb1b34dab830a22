"""Local files and directories as inputs of tasks: only what the store does not hold travels."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from corral.blobs.ports import BlobStore
from corral.client.trees import upload_tree
from corral.kernel.digest import Digest, Digester
from corral.kernel.errors import InvalidSpec

_PIECE_BYTES: Final = 1024**2
_PIECES_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an upload is: what is uploaded, and what was sent of it."""

    name: str
    blobs_sent: int = 0
    bytes_sent: int = 0


OnProgress = Callable[[Progress], None]


class Uploads:
    """Into the caller's part of the blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def input(self, local: Path, path: str, *, on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Upload a file or directory; the entry for a payload's ``inputs`` that puts it at ``path``."""
        is_directory, executable = await asyncio.to_thread(_kind_of, local)
        if is_directory:
            return {"path": path, "tree": str(await self.directory(local, on_progress=on_progress))}
        entry: dict[str, Any] = {"path": path, "digest": str(await self.file(local, on_progress=on_progress))}
        return {**entry, "executable": True} if executable else entry

    async def directory(self, local: Path, *, on_progress: OnProgress | None = None) -> Digest:
        """Upload a directory as a tree. Raises InvalidSpec naming a link that leads out, a device or a socket."""
        return await upload_tree(_Counted(self._blobs, local.name or str(local), on_progress), local)

    async def file(self, local: Path, *, on_progress: OnProgress | None = None) -> Digest:
        """Upload one file. Raises InvalidSpec when it is a device or the like, cannot be read, or changes meanwhile."""
        try:
            digest = await _digest_of(local)
            store = _Counted(self._blobs, local.name, on_progress)
            if await store.find_missing("", [digest]):
                await store.write("", digest, _pieces(local))
        except OSError as error:
            raise InvalidSpec(f"{local}: cannot be read: {error.strerror}", field="input") from error
        return digest


class _Counted:
    """A store that tells how much was sent through it."""

    def __init__(self, inner: BlobStore, name: str, on_progress: OnProgress | None) -> None:
        self._inner = inner
        self._name = name
        self._on_progress = on_progress
        self._blobs_sent = 0
        self._bytes_sent = 0

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        return await self._inner.find_missing(tenant, digests)

    def read(self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None) -> Any:
        return self._inner.read(tenant, digest, offset=offset, length=length)

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        await self._inner.write(tenant, digest, self._counting(content))
        self._blobs_sent += 1
        self._tell()

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        await self._inner.delete(tenant, digests)

    async def _counting(self, content: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        async for piece in content:
            yield piece
            self._bytes_sent += len(piece)
            self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(name=self._name, blobs_sent=self._blobs_sent, bytes_sent=self._bytes_sent))


def _kind_of(local: Path) -> tuple[bool, bool]:
    return local.is_dir(), os.access(local, os.X_OK)


async def _digest_of(local: Path) -> Digest:
    digester = Digester()
    with await asyncio.to_thread(_opened, local) as file:
        while await asyncio.to_thread(_take, file, digester):  # in steps, so that Ctrl-C need not wait for the end
            pass
    return digester.digest()


def _take(file: IO[bytes], digester: Digester) -> bool:
    for _ in range(_PIECES_AT_ONCE):
        piece = file.read(_PIECE_BYTES)
        if not piece:
            return False
        digester.update(piece)
    return True


async def _pieces(local: Path) -> AsyncGenerator[bytes, None]:
    with await asyncio.to_thread(_opened, local) as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece


def _opened(local: Path) -> IO[bytes]:
    descriptor = os.open(local, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo would wait for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidSpec(f"{local}: is neither a file nor a directory, so it cannot be an input", field="input")
    return os.fdopen(descriptor, "rb")
