"""Byte streams of layers: verified, decompressed within bounds, read ahead by a thread, and read exactly.

Every step is a generator over pieces of bytes; whoever reads to the end has checked everything.
"""

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Final, cast

import zstandard

from corral.images.model import MIB
from corral.kernel.errors import BlobCorrupt, CorralError, InvalidSpec, TooLarge

PIECE: Final = MIB
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW_MAX: Final = 128 * MIB
_AHEAD: Final = 8


def verified(pieces: Iterator[bytes], digest: str, size_bytes: int | None, *, what: str) -> Iterator[bytes]:
    """Pass ``pieces`` on; raises BlobCorrupt at once when they are too long, at the end when they do not match."""
    hasher = hashlib.sha256()
    seen = 0
    for piece in pieces:
        seen += len(piece)
        if size_bytes is not None and seen > size_bytes:
            raise BlobCorrupt(f"{what}: is longer than the {size_bytes} bytes that its manifest names")
        hasher.update(piece)
        yield piece
    if size_bytes is not None and seen != size_bytes:
        raise BlobCorrupt(f"{what}: has {seen} bytes, its manifest names {size_bytes}")
    found = f"sha256:{hasher.hexdigest()}"
    if found != digest:
        raise BlobCorrupt(f"{what}: does not match its digest {digest}; its bytes are {found}")


def decompressed(pieces: Iterator[bytes], *, what: str) -> Iterator[bytes]:
    """Undo gzip or zstd, told by the first bytes; anything else passes. Bounded memory whatever the bytes say.

    Raises InvalidSpec for a broken stream.
    """
    first = b""
    for piece in pieces:
        first += piece
        if len(first) >= 4:
            break
    rest = _chain(first, pieces)
    try:
        if first.startswith(_GZIP):
            yield from _gunzip(rest, what)
        elif first.startswith(_ZSTD):
            yield from _unzstd(rest)
        else:
            yield from rest
    except (zlib.error, zstandard.ZstdError) as error:
        for _ in pieces:  # bytes that do not match their digest are the better explanation
            pass
        raise InvalidSpec(f"{what}: cannot be decompressed: {error}") from error


def counted(pieces: Iterator[bytes], take: Callable[[int], None]) -> Iterator[bytes]:
    """Pass ``pieces`` on and tell ``take`` the size of each before it is used."""
    for piece in pieces:
        take(len(piece))
        yield piece


class Budget:
    """Counts something up to a limit with a name."""

    def __init__(self, limit: int, name: str, subject: str) -> None:
        self._limit = limit
        self._name = name
        self._subject = subject
        self.used = 0

    def take(self, amount: int) -> None:
        """Raises TooLarge when the limit is passed."""
        self.used += amount
        if self.used > self._limit:
            raise TooLarge(f"{self._subject}: passes images.limits.{self._name} ({self._limit})", limit=self._name)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _gunzip(pieces: Iterator[bytes], what: str) -> Iterator[bytes]:
    machine = zlib.decompressobj(wbits=31)
    fresh = True  # nothing of this member was read yet
    for piece in pieces:
        data = piece
        while data:
            if machine.eof:  # another member; zeros are padding
                if fresh and not data.strip(b"\0"):
                    break
                machine = zlib.decompressobj(wbits=31)
            out = machine.decompress(data, PIECE)
            fresh = machine.eof
            data = machine.unused_data if machine.eof else machine.unconsumed_tail
            if out:
                yield out
    while not machine.eof and (out := machine.decompress(machine.unconsumed_tail, PIECE)):
        yield out
    if not machine.eof:
        raise InvalidSpec(f"{what}: its gzip stream ends too early")


def _unzstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    source = _PieceReader(pieces)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    with decompressor.stream_reader(
        cast(IO[bytes], source), read_size=PIECE, read_across_frames=True, closefd=False
    ) as reader:
        while out := reader.read(PIECE):
            yield out


class _PieceReader:
    """What zstandard reads from: pieces behind a ``read``."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = next(self._pieces, b"")
        piece, self._left = (self._left[:size], self._left[size:]) if size >= 0 else (self._left, b"")
        return piece


class Ahead:
    """Pieces made by a thread of their own, a bounded number ahead: network, hash and decompression beside writing."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(pieces,), name="layer", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[bytes]:
        while (each := self._queue.get()) is not None:
            if isinstance(each, BaseException):
                raise each
            yield each

    def close(self) -> None:
        """Ask the thread to end; it may sit in the network until its time-out, and is not waited for."""
        self._left.set()

    def _work(self, pieces: Iterator[bytes]) -> None:
        try:
            for piece in pieces:
                if self._left.is_set():
                    return
                self._queue.put(piece)
        except Exception as error:  # noqa: BLE001 (thread boundary: the reader gets it)
            self._queue.put(error)
        else:
            self._queue.put(None)


class Truncated(CorralError):
    """A stream ended before what was asked of it; the reader says of what."""


class ExactReader:
    """Reads exactly so many bytes of a stream of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = b""
        self._at = 0

    def exactly(self, size: int) -> bytes:
        """``size`` bytes, for small sizes. Raises Truncated."""
        if len(self._buffer) - self._at >= size:
            self._at += size
            return self._buffer[self._at - size : self._at]
        parts, missing = [], size
        while missing:
            part = self.some(missing)
            if not part:
                raise Truncated(f"{missing} of {size} bytes are missing")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def some(self, size: int) -> bytes:
        """Between 1 and ``size`` bytes; b"" at the end."""
        while self._at >= len(self._buffer):
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._buffer, self._at = piece, 0
        end = min(self._at + size, len(self._buffer))
        part = self._buffer[self._at : end] if end - self._at < len(self._buffer) else self._buffer
        self._at = end
        return part

    def drain(self) -> None:
        """Read to the end, so that everything behind this reader is checked."""
        self._buffer, self._at = b"", 0
        for _ in self._pieces:
            pass
