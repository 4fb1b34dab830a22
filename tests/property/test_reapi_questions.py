"""FindMissingBlobs as bytes says what protobuf says, whatever is sent."""

from typing import Final

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.actions.adapters.messages import digest_from
from corral.doors.reapi.questions import Question
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec
from corral.wire.reapi import remote_execution_pb2 as reapi

SETTINGS: Final = settings(max_examples=300, derandomize=True, deadline=None)
SIZES = st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 2**21, 2**28, 2**35, 2**42, 2**49, 2**56, 2**60])
HASHES = st.sampled_from(["0" * 64, "ab" * 32, "f" * 64, "0123456789abcdef" * 4])
STRANGE = st.sampled_from(["", "ab", "A" * 64, "\n" * 64, "g" * 64, "ä" * 32, "\x12" * 64, "0" * 65])
GOOD = st.builds(lambda text, size: reapi.Digest(hash=text, size_bytes=size), HASHES, SIZES)
BAD = st.builds(lambda text, size: reapi.Digest(hash=text, size_bytes=size), STRANGE, SIZES)
BAD_SIZE = st.builds(
    lambda text, size: reapi.Digest(hash=text, size_bytes=size), HASHES, st.sampled_from([-1, 2**63 - 1])
)
INSTANCES = st.sampled_from(["", "ann", "x" * 127, "x" * 128, "ä", "\x12\x42\n@"])
FUNCTIONS = st.sampled_from([0, 1, 9, 24, 127, 128, 1000])


@st.composite
def requests(draw: st.DrawFn, digests: st.SearchStrategy[reapi.Digest]) -> bytes:
    """Fields in the usual order, or in another, or twice, or with some that nobody knows."""
    instance = reapi.FindMissingBlobsRequest(instance_name=draw(INSTANCES)).SerializeToString()
    function = reapi.FindMissingBlobsRequest(digest_function=draw(FUNCTIONS)).SerializeToString()  # type: ignore[arg-type]
    row = [
        reapi.FindMissingBlobsRequest(blob_digests=[each]).SerializeToString()
        for each in draw(st.lists(digests, max_size=6))
    ]
    parts = draw(
        st.sampled_from([[instance, *row, function], [function, *row, instance], [*row, instance, *row, function]])
    )
    return b"".join(parts) + draw(st.sampled_from([b"", b"", b"\x20\x05", b"\x12\x00"]))


def said_by_protobuf(request: bytes) -> tuple[str, int, list[Digest]]:
    """Raises InvalidSpec."""
    try:
        message = reapi.FindMissingBlobsRequest.FromString(request)
    except DecodeError:
        raise InvalidSpec("no message") from None
    digests = [digest_from(each, HashFunction.SHA256) for each in message.blob_digests]
    return message.instance_name, message.digest_function, digests


def said(request: bytes) -> tuple[str, int, list[Digest]]:
    question = Question.read(request)
    return question.instance, question.function, question.digests(HashFunction.SHA256)


def check_same(request: bytes) -> None:
    try:
        expected = said_by_protobuf(request)
    except InvalidSpec:
        refused = False
        try:
            said(request)
        except InvalidSpec:
            refused = True
        assert refused
    else:
        assert said(request) == expected


@SETTINGS
@given(requests(GOOD))
def test_good_questions_are_read_as_protobuf_reads_them(request: bytes) -> None:
    check_same(request)


@SETTINGS
@given(requests(GOOD | BAD | BAD_SIZE))
def test_strange_questions_are_read_or_refused_as_by_protobuf(request: bytes) -> None:
    check_same(request)


@SETTINGS
@given(requests(GOOD), st.integers(0, 400), st.integers(0, 255))
def test_a_question_with_one_wrong_byte_is_read_or_refused_as_by_protobuf(request: bytes, at: int, byte: int) -> None:
    check_same(request[:at] + bytes([byte]) + request[at + 1 :])


@SETTINGS
@given(st.lists(GOOD, max_size=8), st.sets(st.integers(0, 7)))
def test_the_answer_has_the_missing_once_each_in_the_order_asked(digests: list[reapi.Digest], places: set[int]) -> None:
    question = Question.read(reapi.FindMissingBlobsRequest(blob_digests=digests).SerializeToString())
    asked = question.digests(HashFunction.SHA256)
    missing = {asked[place] for place in places if place < len(asked)}

    answer = reapi.FindMissingBlobsResponse.FromString(question.answer(asked, missing))

    told = [Digest(HashFunction.SHA256, each.hash, each.size_bytes) for each in answer.missing_blob_digests]
    assert told == [digest for digest in dict.fromkeys(asked) if digest in missing]
