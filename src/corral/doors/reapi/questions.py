"""Which blobs are missing: the question that clients ask most, and with the most names.

It is read and answered as bytes. Encoded as everybody encodes it, a request is a row of digests between an instance's
name and a digest function. What a digest's bytes say is remembered, and those that are missing are sent back as they
came. A request that is encoded in another way is read by protobuf. Pure.
"""

import re
from collections.abc import Container
from functools import lru_cache
from typing import Final, NamedTuple, cast

from google.protobuf.message import DecodeError

from corral.actions.adapters.messages import digest_from
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec
from corral.wire.reapi import remote_execution_pb2 as reapi

_DIGESTS_KEPT: Final = 10_000
_INSTANCE, _FUNCTION = 0x0A, 0x18  # the tags of what stands before the digests and behind them
_ONE_BYTE_MAX: Final = 0x7F  # the largest number that protobuf writes as one byte
_LENGTH: Final = 66  # of a digest without a size
_SIZES: Final = (b"%c\x0a\x40.{64}\x10[\x80-\xff]{%d}[\x01-\x7f]" % (_LENGTH + 1 + n, n - 1) for n in range(1, 10))
_DIGEST: Final = re.compile(b"\x12(?:%s|%c\x0a\x40.{64})" % (b"|".join(_SIZES), _LENGTH), re.DOTALL)
"""A digest in the row: tag, length, a hash of 64 bytes and, unless it is 0, the size."""


class Question(NamedTuple):
    """What FindMissingBlobs asks: for each digest its bytes, as the answer has them too."""

    instance: str
    function: "reapi.DigestFunction.Value.ValueType"
    encoded: list[bytes]

    @classmethod
    def read(cls, request: bytes) -> "Question":
        """Raises InvalidSpec for bytes that are no such request."""
        return _in_a_row(request) or _decoded(request)

    def digests(self, function: HashFunction) -> list[Digest]:
        """What is asked for. Raises InvalidSpec for a digest that is none."""
        return [_digest_of(encoded, function) for encoded in self.encoded]

    def answer(self, asked: list[Digest], missing: Container[Digest]) -> bytes:
        """The encoded answer: each of ``asked``, which is what ``digests`` gave, that is among the missing, once."""
        told = [encoded for encoded, digest in zip(self.encoded, asked, strict=True) if digest in missing]
        return b"".join(dict.fromkeys(told))


def _in_a_row(request: bytes) -> Question | None:
    """What is asked, when it is encoded as everybody does it."""
    begin, end, instance = 0, len(request), ""
    function = reapi.DigestFunction.UNKNOWN
    try:
        if request and request[0] == _INSTANCE and request[1] <= _ONE_BYTE_MAX:
            begin = 2 + request[1]
            instance = request[2:begin].decode()
        if end >= begin + 2 and request[-2] == _FUNCTION and request[-1] <= _ONE_BYTE_MAX:
            end -= 2
            function = cast("reapi.DigestFunction.Value.ValueType", request[-1])
    except (IndexError, UnicodeDecodeError):
        return None
    digests = _DIGEST.findall(request, begin, end)
    return Question(instance, function, digests) if sum(map(len, digests)) == end - begin else None


def _decoded(request: bytes) -> Question:
    """What is asked, by protobuf; the digests are encoded anew."""
    try:
        message = reapi.FindMissingBlobsRequest.FromString(request)
    except DecodeError:
        raise _garbled() from None
    again = [reapi.FindMissingBlobsResponse(missing_blob_digests=[digest]) for digest in message.blob_digests]
    return Question(message.instance_name, message.digest_function, [each.SerializeToString() for each in again])


@lru_cache(_DIGESTS_KEPT)
def _digest_of(encoded: bytes, function: HashFunction) -> Digest:
    """A digest by its bytes. Raises InvalidSpec when it is none."""
    try:
        (message,) = reapi.FindMissingBlobsResponse.FromString(encoded).missing_blob_digests
    except DecodeError:
        raise _garbled() from None
    return digest_from(message, function, "blob_digests")


def _garbled() -> InvalidSpec:
    return InvalidSpec("blob_digests: this is not a FindMissingBlobsRequest", field="blob_digests")
