"""What every gRPC servicer of ours has around it: our errors as statuses, unknown failures as incidents.

A servicer raises a CorralError and is done. Anything else that escapes it is a defect: it is logged with its
traceback under an incident number, and the caller gets that number and nothing more.
"""

import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import grpc
import structlog

from corral.kernel.errors import CorralError
from corral.wire.errors import METADATA_KEY, pack_error, status_of

Context = grpc.aio.ServicerContext[Any, Any]
_SHAPES: Final = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_logger = structlog.get_logger("corral.wire.server")


async def abort(context: Context, error: CorralError) -> NoReturn:
    """End a call with one of our errors."""
    await context.abort(status_of(error), error.message, ((METADATA_KEY, pack_error(error)),))
    raise AssertionError("abort returned")


Answer = Callable[[Context, CorralError], Awaitable[NoReturn]]
"""Ends a call with one of our errors, as a protocol writes it."""


class ErrorBoundary(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """The request boundary of a gRPC server: all its methods in one table, each with its failures mapped.

    Servicers are added to it as to a server, and it is the server's only handler. An interceptor could do the same, and
    costs each call a fifth of what gRPC itself does. ``answer`` is for protocols with statuses of their own.
    """

    def __init__(self, answer: Answer = abort) -> None:
        self._answer = answer
        self._handlers: list[Any] = []
        self._known: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """What generated code calls with a servicer's methods."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """The same methods once more, which need nothing."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The method that is called, or None."""
        method = str(handler_call_details.method)
        if (wrapped := self._known.get(method)) is not None:
            return wrapped
        for each in self._handlers:
            if (handler := each.service(handler_call_details)) is not None:
                wrapped = self._known[method] = _wrapped(handler, method, self._answer)
                return wrapped
        return None


def _wrapped(handler: Any, method: str, answer: Answer) -> Any:
    """The same method handler, whose failures are mapped. (gRPC's own types are for its synchronous server only.)"""
    shape = next(name for name in _SHAPES if getattr(handler, name) is not None)
    behaviour = getattr(handler, shape)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for message in behaviour(request, context):
                yield message
        except Exception as error:  # noqa: BLE001 - the request boundary: a defect ends one call, not the server
            await _fail(context, method, error, answer)

    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - the request boundary: a defect ends one call, not the server
            await _fail(context, method, error, answer)

    return handler._replace(**{shape: stream if inspect.isasyncgenfunction(behaviour) else call})


async def _fail(context: Context, method: str, error: Exception, answer: Answer) -> NoReturn:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CorralError):
        await answer(context, error)
    if isinstance(error, grpc.aio.AbortError):
        raise error
    incident = secrets.token_hex(4)
    _logger.error("rpc-failed", method=method, incident=incident, exc_info=error)
    await answer(context, CorralError(f"internal error; the scheduler's log tells more under {incident}"))
