"""A finished log as one compressed blob that can be read from any offset.

The bytes are Zstandard frames, each of at most ``FRAME_BYTES`` of log, followed by a seek table in a skippable
frame: the "seekable format" of github.com/facebook/zstd/tree/dev/contrib/seekable_format. So ``zstd -d`` reads the
whole, and a reader of the last line decompresses one frame.
"""

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from corral.blobs.ports import BlobReader
from corral.kernel.digest import Digest, Digester
from corral.kernel.errors import BlobCorrupt

FRAME_BYTES: Final = 1024 * 1024
_LEVEL: Final = 3
_SKIPPABLE: Final = 0x184D2A5E
_SEEKABLE: Final = 0x8F92EAB1
_HEADER: Final = struct.Struct("<II")  # magic of a skippable frame, bytes that follow
_ENTRY: Final = struct.Struct("<II")  # compressed bytes, bytes of log
_FOOTER: Final = struct.Struct("<IBI")  # number of frames, descriptor, magic


def compress(source: Path, target: Path) -> Digest:
    """Write the archive of the file ``source`` to ``target`` and name it. Blocks: call it in a thread."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    digester = Digester()
    table = bytearray()
    with source.open("rb") as plain, target.open("wb") as packed:
        while piece := plain.read(FRAME_BYTES):
            frame = compressor.compress(piece)
            _put(packed, digester, frame)
            table += _ENTRY.pack(len(frame), len(piece))
        footer = _FOOTER.pack(len(table) // _ENTRY.size, 0, _SEEKABLE)
        _put(packed, digester, _HEADER.pack(_SKIPPABLE, len(table) + len(footer)) + bytes(table) + footer)
    return digester.digest()


def _put(target: BinaryIO, digester: Digester, data: bytes) -> None:
    target.write(data)
    digester.update(data)


@dataclass(frozen=True, slots=True)
class _Frame:
    packed_at: int
    packed_bytes: int
    log_at: int
    log_bytes: int


async def read_archive(blobs: BlobReader, tenant: str, digest: Digest, *, offset: int = 0) -> AsyncIterator[bytes]:
    """Stream a log from byte ``offset`` of its text, in pieces of at most ``FRAME_BYTES``.

    Raises: what ``blobs.read`` raises; BlobCorrupt when the blob is no archive. Cancellation: safe.
    """
    decompressor = zstandard.ZstdDecompressor()
    for frame in await _frames(blobs, tenant, digest):
        if frame.log_at + frame.log_bytes <= offset:
            continue
        packed = await _read(blobs, tenant, digest, frame.packed_at, frame.packed_bytes)
        try:
            piece = decompressor.decompress(packed, max_output_size=FRAME_BYTES)
        except zstandard.ZstdError as error:
            raise _corrupt(digest) from error
        if len(piece) != frame.log_bytes:
            raise _corrupt(digest)
        yield piece[max(0, offset - frame.log_at) :]


async def _frames(blobs: BlobReader, tenant: str, digest: Digest) -> list[_Frame]:
    size = digest.size_bytes
    if size < _HEADER.size + _FOOTER.size:
        raise _corrupt(digest)
    tail = await _read(blobs, tenant, digest, max(0, size - 64 * 1024), min(size, 64 * 1024))
    count, _, magic = _FOOTER.unpack_from(tail, len(tail) - _FOOTER.size)
    table_bytes = count * _ENTRY.size
    if magic != _SEEKABLE or table_bytes + _HEADER.size + _FOOTER.size > size:
        raise _corrupt(digest)
    if table_bytes + _FOOTER.size > len(tail):
        tail = await _read(blobs, tenant, digest, size - _FOOTER.size - table_bytes, table_bytes + _FOOTER.size)
    table = tail[len(tail) - _FOOTER.size - table_bytes : len(tail) - _FOOTER.size]
    packed_ends, log_ends = [0], [0]
    for packed_bytes, log_bytes in _ENTRY.iter_unpack(table):
        packed_ends.append(packed_ends[-1] + packed_bytes)
        log_ends.append(log_ends[-1] + log_bytes)
    if packed_ends[-1] + _HEADER.size + table_bytes + _FOOTER.size != size:
        raise _corrupt(digest)
    return [
        _Frame(packed_at, packed_end - packed_at, log_at, log_end - log_at)
        for (packed_at, packed_end), (log_at, log_end) in zip(pairwise(packed_ends), pairwise(log_ends), strict=True)
    ]


async def _read(blobs: BlobReader, tenant: str, digest: Digest, offset: int, length: int) -> bytes:
    data = b"".join([piece async for piece in blobs.read(tenant, digest, offset=offset, length=length)])
    if len(data) != length:
        raise _corrupt(digest)
    return data


def _corrupt(digest: Digest) -> BlobCorrupt:
    return BlobCorrupt(f"{digest} is not the archive of a log", digest=str(digest))
