"""Every error of ours survives the wire, and every status of gRPC has a meaning."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from corral.kernel.errors import CorralError, DependencyError, InvalidSpec, SchedulerUnavailable, TooLarge
from corral.wire.errors import (
    METADATA_KEY,
    error_of_code,
    error_of_rpc,
    every_error,
    pack_error,
    status_of,
    unpack_error,
)

ERRORS = sorted(every_error(), key=lambda kind: kind.code)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_trip(kind: type[CorralError]) -> None:
    sent = kind("what is wrong", cure="what helps", task="task_1", count=3)

    received = unpack_error(pack_error(sent))

    assert type(received) is kind
    assert (received.message, received.cure, received.context) == (sent.message, sent.cure, sent.context)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_that_is_no_success(kind: type[CorralError]) -> None:
    assert status_of(kind("x")) is not grpc.StatusCode.OK


def test_all_mistakes_survive_the_trip() -> None:
    received = unpack_error(pack_error(InvalidSpec("two", mistakes=("a", "b"))))

    assert isinstance(received, InvalidSpec)
    assert received.mistakes == ("a", "b")


def test_an_error_of_any_length_fits_into_the_metadata() -> None:
    sent = InvalidSpec("m" * 10**6, cure="c" * 10**6, mistakes=("x" * 10**5,) * 1000, field="f" * 10**6)

    assert len(pack_error(sent)) < 8 * 1024


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_every_status_of_a_stranger_has_a_meaning(code: grpc.StatusCode) -> None:
    failure = AioRpcError(code, Metadata(), Metadata(), details="words", debug_error_string="")

    meaning = error_of_rpc(failure)

    assert "words" in meaning.message
    assert meaning.retryable is isinstance(meaning, DependencyError)


def test_a_scheduler_that_is_away_is_told_apart_from_a_store_that_is_away() -> None:
    away = AioRpcError(
        grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="connection refused", debug_error_string=""
    )
    ours = Metadata((METADATA_KEY, pack_error(error_of_code("store-unavailable", "disk"))))
    store = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), ours, details="disk", debug_error_string="")

    assert isinstance(error_of_rpc(away), SchedulerUnavailable)
    assert error_of_rpc(store).code == "store-unavailable"


def test_an_error_of_a_newer_peer_is_still_an_error() -> None:
    assert type(error_of_code("from-the-future", "x")) is CorralError
    assert type(unpack_error(b"\xff garbage")) is DependencyError


def test_a_message_over_the_limit_is_too_large_and_not_a_lost_scheduler() -> None:
    failure = AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, Metadata(), Metadata(), details="larger than max", debug_error_string=""
    )

    assert isinstance(error_of_rpc(failure), TooLarge)
