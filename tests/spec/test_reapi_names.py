"""What REAPI's resource names mean."""

import pytest

from corral.doors.reapi.names import function_of, parse_read_name, parse_write_name, subject_of
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec
from corral.wire.reapi import remote_execution_pb2 as reapi

SHA = Digest.of(b"hello", HashFunction.SHA256)
B3 = Digest.of(b"hello", HashFunction.BLAKE3)


def test_a_name_without_a_function_is_of_sha256() -> None:
    name = parse_read_name(f"acme/blobs/{SHA.hash}/5")

    assert (name.instance, name.digest, name.zstd) == ("acme", SHA, False)


def test_blake3_is_said_in_the_name() -> None:
    assert parse_read_name(f"acme/blobs/blake3/{B3.hash}/5").digest == B3


def test_a_name_without_an_instance_begins_with_the_keyword() -> None:
    assert parse_read_name(f"blobs/{SHA.hash}/5").instance == ""
    assert parse_write_name(f"uploads/u-1/blobs/{SHA.hash}/5").instance == ""


def test_a_compressed_name_names_the_plain_content() -> None:
    name = parse_read_name(f"acme/compressed-blobs/zstd/blake3/{B3.hash}/5")

    assert (name.digest, name.zstd) == (B3, True)


def test_what_follows_the_size_of_an_upload_is_the_clients_own() -> None:
    name = parse_write_name(f"acme/uploads/u-1/blobs/{SHA.hash}/5/my/file.o")

    assert (name.instance, name.upload, name.digest) == ("acme", "u-1", SHA)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "acme",
        "blobs",
        f"blobs/{SHA.hash}",
        f"blobs/{SHA.hash}/-1",
        f"blobs/{SHA.hash}/05",
        f"blobs/{SHA.hash}/5/more",
        f"blobs/{SHA.hash.upper()}/5",
        f"blobs/{SHA.hash[:-1]}/5",
        f"blobs/md5/{SHA.hash}/5",
        f"compressed-blobs/{SHA.hash}/5",
        f"compressed-blobs/brotli/{SHA.hash}/5",
        f"blobs/{SHA.hash}/{10**18}",
    ],
)
def test_a_name_that_means_nothing_is_refused_with_its_text(name: str) -> None:
    with pytest.raises(InvalidSpec, match="resource_name"):
        parse_read_name(name)


@pytest.mark.parametrize(
    "name",
    [f"acme/blobs/{SHA.hash}/5", f"uploads/{SHA.hash}/5", f"uploads//blobs/{SHA.hash}/5", "uploads/u", "uploads/u/x/y"],
)
def test_a_name_to_write_to_has_an_upload(name: str) -> None:
    with pytest.raises(InvalidSpec, match="resource_name"):
        parse_write_name(name)


def test_a_missing_blob_is_named_without_instance_and_with_blake3_only() -> None:
    assert subject_of(SHA) == f"blobs/{SHA.hash}/5"
    assert subject_of(B3) == f"blobs/blake3/{B3.hash}/5"


def test_functions_that_are_not_served_are_refused_by_name() -> None:
    assert function_of(reapi.DigestFunction.UNKNOWN) is HashFunction.SHA256
    assert function_of(reapi.DigestFunction.BLAKE3) is HashFunction.BLAKE3
    with pytest.raises(InvalidSpec, match="SHA512 is not served"):
        function_of(reapi.DigestFunction.SHA512)
