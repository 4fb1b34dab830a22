"""Names on the wire: digests, digest functions, and the resource names of streams. Pure.

REAPI puts the hash function beside the digests, or leaves it out; then SHA-256 is meant, since of the functions that
we speak only BLAKE3 has to be said.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from corral.actions.adapters.messages import digest_from
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec
from corral.wire.reapi import remote_execution_pb2 as reapi

FUNCTIONS: Final = {
    reapi.DigestFunction.UNKNOWN: HashFunction.SHA256,
    reapi.DigestFunction.SHA256: HashFunction.SHA256,
    reapi.DigestFunction.BLAKE3: HashFunction.BLAKE3,
}
ON_WIRE: Final = {
    HashFunction.SHA256: reapi.DigestFunction.SHA256,
    HashFunction.BLAKE3: reapi.DigestFunction.BLAKE3,
}
_SEGMENTS: Final = {"blake3": HashFunction.BLAKE3, "sha256": HashFunction.SHA256}
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9a-f]*")
_HASH_LENGTH: Final = 64
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_EMPTY: Final = {function: Digest.of(b"", function) for function in HashFunction}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceName:
    """A name for ByteStream.

    Attributes:
        instance: what stands before ``blobs`` or ``uploads``.
        digest: of the content, uncompressed.
        zstd: the stream is compressed.
        upload: the client's own word for this upload; "" in names to read.
    """

    instance: str
    digest: Digest
    zstd: bool = False
    upload: str = ""


def function_of(value: "reapi.DigestFunction.Value.ValueType") -> HashFunction:
    """The function that a request names. Raises InvalidSpec for one that we do not speak."""
    if value not in FUNCTIONS:
        known = value in reapi.DigestFunction.Value.values()
        name = reapi.DigestFunction.Value.Name(value) if known else str(value)
        raise InvalidSpec(f"digest_function: {name} is not served; use SHA256 or BLAKE3", field="digest_function")
    return FUNCTIONS[value]


def digests_of(messages: Sequence[reapi.Digest], function: HashFunction, field: str) -> list[Digest]:
    """Many digests, in order; checked all at once, since one request may have thousands. Raises InvalidSpec."""
    named = [(message.hash, message.size_bytes) for message in messages]
    fine = all(len(text) == _HASH_LENGTH and size_bytes >= 0 for text, size_bytes in named)
    if not fine or _HEX.fullmatch("".join([text for text, _size in named])) is None:
        return [digest_from(message, function, field) for message in messages]  # which says what is wrong with which
    return [Digest(function, text, size_bytes) for text, size_bytes in named]


def is_empty(digest: Digest) -> bool:
    """Tell whether this names no bytes at all: such a blob is always there."""
    return digest.size_bytes == 0 and digest == _EMPTY[digest.function]


def subject_of(digest: Digest) -> str:
    """How a missing blob is named in a violation: a resource name without the instance."""
    function = "blake3/" if digest.function is HashFunction.BLAKE3 else ""
    return f"blobs/{function}{digest.hash}/{digest.size_bytes}"


def parse_read_name(name: str) -> ResourceName:
    """``{instance}/blobs/{function/}{hash}/{size}`` or ``…/compressed-blobs/zstd/…``. Raises InvalidSpec."""
    parts = name.split("/")
    at = _keyword(parts, name)
    digest, zstd, rest = _content(parts[at:], name)
    if rest:
        raise _bad(name, "something follows the size")
    return ResourceName(instance="/".join(parts[:at]), digest=digest, zstd=zstd)


def parse_write_name(name: str) -> ResourceName:
    """``{instance}/uploads/{uuid}/blobs/…``; what follows the size is the client's own. Raises InvalidSpec."""
    parts = name.split("/")
    if "uploads" not in parts:
        raise _bad(name, 'a name to write to has "uploads/{uuid}" before "blobs"')
    at = parts.index("uploads")
    if len(parts) < at + 3 or not parts[at + 1] or parts[at + 2] not in ("blobs", "compressed-blobs"):
        raise _bad(name, '"uploads" is followed by a UUID and "blobs" or "compressed-blobs"')
    digest, zstd, _metadata = _content(parts[at + 2 :], name)
    return ResourceName(instance="/".join(parts[:at]), digest=digest, zstd=zstd, upload=parts[at + 1])


def _keyword(parts: list[str], name: str) -> int:
    for at, part in enumerate(parts):
        if part in ("blobs", "compressed-blobs"):
            return at
    raise _bad(name, 'it has neither "blobs" nor "compressed-blobs"')


def _content(parts: list[str], name: str) -> tuple[Digest, bool, list[str]]:
    """The digest after ``blobs``, whether it is compressed, and what is left."""
    keyword, rest = parts[0], parts[1:]
    if zstd := keyword == "compressed-blobs":
        compressor, rest = (rest[0] if rest else ""), rest[1:]
        if compressor != "zstd":
            raise _bad(name, f'the compressor "{compressor[:40]}" is not served; use zstd')
    function = HashFunction.SHA256
    if rest and rest[0] in _SEGMENTS:
        function, rest = _SEGMENTS[rest[0]], rest[1:]
    if len(rest) < 2 or not _HASH.fullmatch(rest[0]) or not _SIZE.fullmatch(rest[1]):
        raise _bad(name, "a digest is {hash}/{size}: 64 lower-case hex digits, and bytes")
    return Digest(function, rest[0], int(rest[1])), zstd, rest[2:]


def _bad(name: str, why: str) -> InvalidSpec:
    return InvalidSpec(f'resource_name: "{name[:200]}": {why}', field="resource_name")
