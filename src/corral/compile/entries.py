"""What the store writes: entries that know their own key, version and hash. Pure.

An entry is ``magic · BLAKE3 of the rest · body``; the body is MessagePack. Whatever does not fit, a truncated file, a
flipped bit, another version or another key, is no entry: the compile runs once more and replaces it.
"""

from typing import Final, TypeVar

import blake3
import msgspec
import zstandard

from corral.compile.model import IncludeSet, Result

_MAGIC: Final = b"CRLCC\x01"
_HASH_BYTES: Final = 32
_HEAD_BYTES: Final = len(_MAGIC) + _HASH_BYTES

T = TypeVar("T", bound="ResultEntry | SetsEntry")


class Content(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of one file: within the entry, zstd-compressed; or outside (``data`` empty) in the objects' directory."""

    role: str
    inside: bool
    data: bytes = b""


class ResultEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A result and the contents of its files."""

    key: str
    result: Result
    contents: tuple[Content, ...]


class SetsEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The include sets of one request, the last one that matched first, each with its result key."""

    key: str
    sets: tuple[tuple[IncludeSet, str], ...]


_encoder: Final = msgspec.msgpack.Encoder()
_results: Final = msgspec.msgpack.Decoder(ResultEntry)
_sets: Final = msgspec.msgpack.Decoder(SetsEntry)


def compressed(data: bytes, level: int) -> bytes:
    """The content of a file, as it lies within an entry."""
    return zstandard.compress(data, level)


def uncompressed(data: bytes, size_bytes: int) -> bytes:
    """... and back. Raises LookupError when it is not what it says."""
    try:
        found = zstandard.decompress(data, max_output_size=size_bytes)
    except zstandard.ZstdError as error:
        raise LookupError(str(error)) from error
    if len(found) != size_bytes:
        raise LookupError(f"{len(found)} bytes instead of {size_bytes}")
    return found


def encode(entry: ResultEntry | SetsEntry) -> bytes:
    """The bytes of the file."""
    body = _encoder.encode(entry)
    return b"".join((_MAGIC, blake3.blake3(body).digest(), body))


def decode_result(data: bytes, key: str) -> ResultEntry | None:
    """The entry, None when ``data`` is not a whole and true one of ``key``."""
    return _decode(_results, data, key)


def decode_sets(data: bytes, key: str) -> SetsEntry | None:
    """The entry, None when ``data`` is not a whole and true one of ``key``."""
    return _decode(_sets, data, key)


def _decode(decoder: "msgspec.msgpack.Decoder[T]", data: bytes, key: str) -> T | None:
    if not data.startswith(_MAGIC):
        return None
    body = memoryview(data)[_HEAD_BYTES:]
    if blake3.blake3(body).digest() != data[len(_MAGIC) : _HEAD_BYTES]:
        return None
    try:
        entry = decoder.decode(body)
    except msgspec.MsgspecError:
        return None
    return entry if entry.key == key else None
