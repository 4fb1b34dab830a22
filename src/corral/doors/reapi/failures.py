"""Our errors as the statuses that REAPI documents, with google.rpc details where it asks for them."""

from typing import Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from corral.actions.errors import MissingBlobs
from corral.doors.reapi.names import subject_of
from corral.kernel.digest import Digest
from corral.kernel.errors import (
    CallerError,
    CorralError,
    InvalidSpec,
    NotFound,
    TooLarge,
)
from corral.wire.errors import status_of
from corral.wire.reapi.error_details_pb2 import BadRequest, PreconditionFailure, RetryInfo
from corral.wire.reapi.status_pb2 import Status
from corral.wire.server import Context

CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
_DETAILS_KEY: Final = "grpc-status-details-bin"
_VIOLATIONS_MAX: Final = 50  # in metadata, which gRPC bounds to 8 KiB
_RETRY_AFTER_S: Final = 1


class OutOfRange(CallerError):
    """An offset that is not in the content."""

    code = "out-of-range"
    status = 416


def code_of(error: CorralError) -> grpc.StatusCode:
    """The status code that REAPI gives to such a failure."""
    match error:
        case MissingBlobs():
            return grpc.StatusCode.FAILED_PRECONDITION
        case OutOfRange():
            return grpc.StatusCode.OUT_OF_RANGE
        case TooLarge():
            return grpc.StatusCode.INVALID_ARGUMENT
        case _:
            return status_of(error)


def status_message(error: CorralError, *, violations_max: int | None = None) -> Status:
    """The failure as a message; every missing blob is named, or the first ``violations_max``."""
    status = Status(code=number_of(code_of(error)), message=str(error))
    if isinstance(error, MissingBlobs):
        failure = PreconditionFailure(
            violations=[
                PreconditionFailure.Violation(type="MISSING", subject=subject_of(digest))
                for digest in error.digests[:violations_max]
            ]
        )
        _attach(status, failure)
    elif isinstance(error, InvalidSpec):
        field = str(error.context.get("field", ""))
        _attach(
            status,
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(field=field, description=mistake[:500]) for mistake in error.mistakes[:5]
                ]
            ),
        )
    elif error.retryable:
        info = RetryInfo()
        info.retry_delay.FromSeconds(_RETRY_AFTER_S)
        _attach(status, info)
    return status


def number_of(code: grpc.StatusCode) -> int:
    """The number of a status code."""
    return int(code.value[0])


async def abort(context: Context, error: CorralError) -> NoReturn:
    """End a call with a failure, and its details in the trailing metadata."""
    status = status_message(error, violations_max=_VIOLATIONS_MAX)
    await context.abort(code_of(error), status.message, ((_DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort returned")


def no_blob(digest: Digest) -> NotFound:
    """The answer for content that is not stored."""
    return NotFound(f"no blob {subject_of(digest)}", digest=str(digest))


def _attach(status: Status, detail: BadRequest | PreconditionFailure | RetryInfo) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
