"""The one map between our errors and gRPC's, both ways.

Our side of the wire says everything: the status code for strangers, and the whole error in the trailing metadata
``corral-error-bin`` for ourselves. An answer without that metadata comes from gRPC itself, or from something that is
not a scheduler, and is mapped by its status code.
"""

from collections.abc import Iterable, Iterator
from typing import Final, cast

import grpc
import msgspec
from grpc.aio import AioRpcError

from corral.kernel.errors import (
    BlobCorrupt,
    CallerError,
    CapacityError,
    Conflict,
    ContextValue,
    CorralError,
    DependencyError,
    InvalidSpec,
    NotFound,
    Refused,
    SchedulerUnavailable,
    TooLarge,
    Unauthenticated,
    UnsupportedVersion,
)

METADATA_KEY: Final = "corral-error-bin"
_TEXT_MAX: Final = 1000  # gRPC drops calls with more than 8 KiB of metadata
_MISTAKES_MAX: Final = 5

_STATUS: Final[dict[type[CorralError], grpc.StatusCode]] = {
    InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ABORTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Refused: grpc.StatusCode.PERMISSION_DENIED,
    TooLarge: grpc.StatusCode.OUT_OF_RANGE,
    CallerError: grpc.StatusCode.INVALID_ARGUMENT,
    CapacityError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DependencyError: grpc.StatusCode.UNAVAILABLE,
    BlobCorrupt: grpc.StatusCode.DATA_LOSS,
    UnsupportedVersion: grpc.StatusCode.FAILED_PRECONDITION,
    CorralError: grpc.StatusCode.INTERNAL,
}
_FOREIGN: Final[dict[grpc.StatusCode, type[CorralError]]] = {
    grpc.StatusCode.UNAVAILABLE: SchedulerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: SchedulerUnavailable,
    grpc.StatusCode.CANCELLED: SchedulerUnavailable,
    grpc.StatusCode.UNKNOWN: DependencyError,
    grpc.StatusCode.INTERNAL: DependencyError,
    grpc.StatusCode.ABORTED: DependencyError,
    grpc.StatusCode.DATA_LOSS: DependencyError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    grpc.StatusCode.OUT_OF_RANGE: TooLarge,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Refused,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidSpec,
    grpc.StatusCode.FAILED_PRECONDITION: UnsupportedVersion,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedVersion,
    grpc.StatusCode.OK: DependencyError,
}


class _Packed(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str
    cure: str = ""
    mistakes: tuple[str, ...] = ()
    context: dict[str, ContextValue] = {}


def status_of(error: CorralError) -> grpc.StatusCode:
    """The status code of the error's nearest known class."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def pack_error(error: CorralError) -> bytes:
    """An error as bytes; long texts are cut."""
    mistakes = error.mistakes[:_MISTAKES_MAX] if isinstance(error, InvalidSpec) else ()
    packed = _Packed(
        code=error.code,
        message=error.message[:_TEXT_MAX],
        cure=error.cure[:_TEXT_MAX],
        mistakes=tuple(mistake[: _TEXT_MAX // 5] for mistake in mistakes),
        context={
            name: value[:100] if isinstance(value, str) else value for name, value in list(error.context.items())[:10]
        },
    )
    return msgspec.json.encode(packed)


def unpack_error(data: bytes) -> CorralError:
    """The error of :func:`pack_error`; of an unknown code (a newer peer), the root class."""
    try:
        packed = msgspec.json.decode(data, type=_Packed)
    except msgspec.MsgspecError:
        return DependencyError("the other side answered with an error that cannot be read")
    return error_of_code(packed.code, packed.message, packed)


def error_of_code(code: str, message: str, packed: _Packed | None = None) -> CorralError:
    """The error with a stable ``code``."""
    kind = _classes().get(code, CorralError)
    cure, context = (packed.cure, packed.context) if packed else ("", {})
    if issubclass(kind, InvalidSpec):
        return kind(message, cure=cure, mistakes=packed.mistakes if packed else (), **context)
    return kind(message, cure=cure, **context)


def error_of_rpc(error: AioRpcError) -> CorralError:
    """What a failed call means to us. Total: every status code has a meaning."""
    for key, value in cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ()):
        if key == METADATA_KEY:
            return unpack_error(value)
    details = error.details() or error.code().name
    kind = _FOREIGN[error.code()]
    if kind is SchedulerUnavailable:
        return SchedulerUnavailable(f"the scheduler does not answer: {details}", cure="start one with `corral up`")
    return kind(f"{error.code().name.lower()}: {details}")


def every_error() -> Iterator[type[CorralError]]:
    """All classes of the tree in ``kernel.errors``; what a component derives for itself does not travel."""
    waiting: list[type[CorralError]] = [CorralError]
    while waiting:
        kind = waiting.pop()
        if kind.__module__ == CorralError.__module__:
            yield kind
        waiting += kind.__subclasses__()


def _classes() -> dict[str, type[CorralError]]:
    return {kind.code: kind for kind in every_error() if "code" in vars(kind)}
