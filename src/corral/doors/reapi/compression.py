"""Zstandard (RFC 8878) of small and of endless content, with bounds. Loaded with the first compressed call."""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

import zstandard

from corral.blobs.machine import PIECE_BYTES
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

_LEVEL: Final = 1  # outputs of compilers shrink to about a third at any level; the lowest is the fastest


def compress(data: bytes) -> bytes:
    """One frame."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)


def decompress(data: bytes, digest: Digest, *, field: str) -> bytes:
    """All of one or more frames, which must give exactly the size of ``digest``. Raises InvalidSpec."""
    inflating = Inflating(digest.size_bytes)
    found = b"".join([*inflating.feed(data), *inflating.end()])
    if len(found) != digest.size_bytes:
        raise InvalidSpec(
            f"{field}: {len(found)} bytes come out of the compressed data, not {digest.size_bytes}", field=field
        )
    return found


class Inflating:
    """Frames that come piece by piece; gives at most ``bytes_max`` in all, so that no small bomb fills a disk."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._frame = zstandard.ZstdDecompressor().decompressobj(write_size=PIECE_BYTES)
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """What comes out of the next piece. Raises InvalidSpec for bytes that are no zstd, or too much of them."""
        found = []
        while data:
            self._begun = True
            try:
                piece = self._frame.decompress(data)
            except zstandard.ZstdError as error:
                raise InvalidSpec(f"data: not a zstd stream: {error}", field="data") from None
            self._left -= len(piece)
            if self._left < 0:
                raise InvalidSpec("data: more comes out of it than the digest says", field="data")
            if piece:
                found.append(piece)
            data = b""
            if self._frame.eof:
                data = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj(write_size=PIECE_BYTES)
                self._begun = False
        return found

    def end(self) -> list[bytes]:
        """Raises InvalidSpec when the last frame is not complete."""
        if self._begun:
            raise InvalidSpec("data: the zstd stream ends within a frame", field="data")
        return []


async def compressed(content: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """``content`` as one frame."""
    frame = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    async for piece in content:
        if out := frame.compress(piece):
            yield out
    yield frame.flush()
