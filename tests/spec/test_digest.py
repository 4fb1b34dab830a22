"""Digests: known answers, their text, and streams."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.kernel.digest import Digest, Digester, HashFunction
from corral.kernel.errors import InvalidSpec

EMPTY_BLAKE3 = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"  # the official test vectors
ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, example


def test_known_answers() -> None:
    assert str(Digest.of(b"")) == f"b3:{EMPTY_BLAKE3}-0"
    assert str(Digest.of(b"abc", HashFunction.SHA256)) == f"sha256:{ABC_SHA256}-3"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b3",
        f"b3:{EMPTY_BLAKE3}",
        f"b3:{EMPTY_BLAKE3}-",
        f"b3:{EMPTY_BLAKE3}--1",
        f"b3:{EMPTY_BLAKE3}-01",
        f"b3:{EMPTY_BLAKE3}-1\n",
        f"b3:{EMPTY_BLAKE3}-99999999999999999999",
        f"b3:{EMPTY_BLAKE3}-{2**63}",
        f"md5:{EMPTY_BLAKE3}-0",
        f"b3:{EMPTY_BLAKE3.upper()}-0",
        f"b3:{EMPTY_BLAKE3[1:]}-0",
        f" b3:{EMPTY_BLAKE3}-0",
        f"b3:../../{EMPTY_BLAKE3[6:]}-0",
    ],
)
def test_what_is_not_a_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="digest"):
        Digest.parse(text)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.binary(max_size=300)), st.sampled_from(HashFunction))
def test_a_stream_in_pieces_has_the_digest_of_the_whole(pieces: list[bytes], function: HashFunction) -> None:
    digester = Digester(function)
    for piece in pieces:
        digester.update(piece)

    assert digester.digest() == Digest.of(b"".join(pieces), function)
    assert Digest.parse(str(digester.digest())) == digester.digest()
    if function is HashFunction.SHA256:
        assert digester.digest().hash == hashlib.sha256(b"".join(pieces)).hexdigest()
