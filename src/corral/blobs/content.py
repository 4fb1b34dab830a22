"""Small ways in and out of a store for callers that hold bytes, a file, or a stream whose digest nobody knows yet."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import IO, Final

from corral.blobs.machine import PIECE_BYTES, content_differs, content_too_long, slices
from corral.blobs.ports import BlobReader, BlobWriter
from corral.kernel.digest import Digest, Digester, HashFunction
from corral.kernel.errors import TooLarge
from corral.kernel.units import format_size

_SPOOL_IN_MEMORY_BYTES: Final = 1024 * 1024


class InMemory(AsyncIterator[bytes]):
    """Content that is all there: whoever takes it need not wait for pieces."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._slices = slices(data)

    async def __anext__(self) -> bytes:
        if (piece := next(self._slices, None)) is None:
            raise StopAsyncIteration
        return piece


def pieces_of(data: bytes) -> InMemory:
    """``data`` as a stream of pieces."""
    return InMemory(data)


async def file_pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    """An open binary file, from its current position to its end, as a stream; read in threads."""
    while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
        yield piece


async def collect(content: AsyncIterable[bytes], digest: Digest) -> bytes:
    """All of ``content`` in memory, verified; for content that is known to be small.

    Raises:
        InvalidSpec: its hash or size differ from ``digest``; it is not read beyond the announced size.
    """
    pieces: list[bytes] = []
    size_bytes = 0
    async for piece in content:
        size_bytes += len(piece)
        if size_bytes > digest.size_bytes:
            raise content_too_long(digest)
        pieces.append(bytes(piece))
    data = b"".join(pieces)
    check_content(data, digest)
    return data


def check_content(data: bytes, digest: Digest) -> None:
    """Raise InvalidSpec unless ``data`` is what ``digest`` says."""
    if len(data) > digest.size_bytes:
        raise content_too_long(digest)
    if (found := Digest.of(data, digest.function)) != digest:
        raise content_differs(digest, found=found)


async def read_bytes(store: BlobReader, tenant: str, digest: Digest, *, bytes_max: int) -> bytes:
    """A whole blob in memory, verified.

    Raises:
        TooLarge: the blob is over ``bytes_max``; nothing was read.
        and what ``BlobReader.read`` raises.
    """
    if digest.size_bytes > bytes_max:
        raise TooLarge(
            f"the blob {digest} is over the {format_size(bytes_max)} that may be held in memory here",
            limit="bytes_max",
            limit_bytes=bytes_max,
        )
    return b"".join([piece async for piece in store.read(tenant, digest)])


async def write_bytes(
    store: BlobWriter, tenant: str, data: bytes, *, function: HashFunction = HashFunction.BLAKE3
) -> Digest:
    """Store bytes in memory; returns their digest. Raises what ``BlobWriter.write`` raises."""
    digest = Digest.of(data, function)
    await store.write(tenant, digest, pieces_of(data))
    return digest


async def write_file(
    store: BlobWriter, tenant: str, path: Path, *, function: HashFunction = HashFunction.BLAKE3
) -> Digest:
    """Store a regular file; it is read once to name it and, if the store lacks it, once more to send it.

    Raises:
        InvalidSpec: the file changed between the two.
        OSError: it cannot be read.
        and what ``BlobWriter.write`` raises.
    """
    with _open(path) as file:  # not in a thread: a cancelled open would leave its descriptor to nobody
        digest = await asyncio.to_thread(_digest_of_file, file, function)
        file.seek(0)
        await store.write(tenant, digest, file_pieces(file))
    return digest


async def write_stream(
    store: BlobWriter,
    tenant: str,
    content: AsyncIterable[bytes],
    *,
    spool_dir: Path,
    bytes_max: int,
    function: HashFunction = HashFunction.BLAKE3,
) -> Digest:
    """Store a stream whose digest is known only at its end; a large one waits in an unnamed file in ``spool_dir``.

    Raises:
        TooLarge: more than ``bytes_max`` came; nothing is stored, the rest is not read.
        OSError: the spool cannot be written.
        and what ``BlobWriter.write`` raises.
    Cancellation: nothing becomes visible, the spool is gone.
    """
    digester = Digester(function)
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_IN_MEMORY_BYTES, dir=str(spool_dir)) as spool:
        async for piece in content:
            if digester.size_bytes + len(piece) > bytes_max:
                raise TooLarge(
                    f"the content is over the limit of {format_size(bytes_max)}",
                    limit="bytes_max",
                    limit_bytes=bytes_max,
                )
            if digester.size_bytes + len(piece) <= _SPOOL_IN_MEMORY_BYTES:
                _take(spool, digester, piece)
            else:
                await asyncio.to_thread(_take, spool, digester, piece)
        digest = digester.digest()
        spool.seek(0)
        await store.write(tenant, digest, file_pieces(spool))
    return digest


def _take(spool: IO[bytes], digester: Digester, piece: bytes) -> None:
    digester.update(piece)
    spool.write(piece)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb", buffering=0)


def _digest_of_file(file: IO[bytes], function: HashFunction) -> Digest:
    digester = Digester(function)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while piece := file.read(PIECE_BYTES):
        digester.update(piece)
    return digester.digest()
