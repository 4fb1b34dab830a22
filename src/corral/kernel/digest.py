"""Content is named by its hash.

A digest is a hash function, 32 bytes, and the size of the content. Corral names its own content with BLAKE3
(github.com/BLAKE3-team/BLAKE3-specs) and speaks SHA-256 (FIPS 180-4) where a protocol asks for it; a store keeps
both under one roof. As text: ``b3:<64 hex>-<size>`` or ``sha256:<64 hex>-<size>``; the size is part of the name
(as in Bazel's remote execution API), so a reader knows how much to expect before the first byte.
"""

import hashlib
import re
from enum import StrEnum
from typing import Final, Protocol, Self

import blake3
import msgspec

from corral.kernel.errors import InvalidSpec

_TEXT: Final = re.compile(r"(b3|sha256):([0-9a-f]{64})-(0|[1-9][0-9]{0,18})")


class HashFunction(StrEnum):
    """A hash function that names content; the value is its prefix in a digest's text."""

    BLAKE3 = "b3"
    SHA256 = "sha256"

    __hash__ = str.__hash__  # Enum's own runs in Python, for every digest in every set


class Hasher(Protocol):
    """The part of hashlib's interface that we use."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...
    def digest(self) -> bytes: ...


def new_hasher(function: HashFunction) -> Hasher:
    """A fresh hasher that yields 32 bytes."""
    if function is HashFunction.BLAKE3:
        return blake3.blake3()
    return hashlib.sha256()


class Digest(msgspec.Struct, frozen=True, order=True, cache_hash=True):
    """The name of a content: hash function, lower-case hex hash, and size in bytes."""

    function: HashFunction
    hash: str
    size_bytes: int

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, function: HashFunction = HashFunction.BLAKE3) -> Self:
        """The digest of bytes in memory."""
        hasher = new_hasher(function)
        hasher.update(data)
        return cls(function, hasher.digest().hex(), len(data))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``b3:<hex>-<size>``. Raises InvalidSpec when ``text`` is not a digest."""
        match = _TEXT.fullmatch(text)
        if match is None or int(match[3]) >= 2**63:
            raise InvalidSpec(
                f'digest: "{text[:100]}" is not a digest; write "b3:<64 hex digits>-<size in bytes>" or "sha256:…"',
                field="digest",
            )
        return cls(HashFunction(match[1]), match[2], int(match[3]))

    def __str__(self) -> str:
        return f"{self.function.value}:{self.hash}-{self.size_bytes}"


class Digester:
    """Digest of a stream, fed piece by piece."""

    def __init__(self, function: HashFunction = HashFunction.BLAKE3) -> None:
        self._function = function
        self._hasher = new_hasher(function)
        self.size_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next piece."""
        self._hasher.update(data)
        self.size_bytes += len(data)

    def digest(self) -> Digest:
        """The digest of everything so far."""
        return Digest(self._function, self._hasher.digest().hex(), self.size_bytes)
