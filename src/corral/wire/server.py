"""What every gRPC servicer of ours has around it: our errors as statuses, unknown failures as incidents.

A servicer raises a CorralError and is done. Anything else that escapes it is a defect: it is logged with its
traceback under an incident number, and the caller gets that number and nothing more.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, cast

import grpc
import structlog

from corral.kernel.errors import CorralError
from corral.wire.errors import METADATA_KEY, pack_error, status_of

Context = grpc.aio.ServicerContext[Any, Any]
_logger = structlog.get_logger("corral.wire.server")


async def abort(context: Context, error: CorralError) -> NoReturn:
    """End a call with one of our errors."""
    await context.abort(status_of(error), error.message, ((METADATA_KEY, pack_error(error)),))
    raise AssertionError("abort returned")


class ErrorInterceptor(grpc.aio.ServerInterceptor[Any, Any]):
    """The request boundary of the gRPC server."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)  # None: no such method
        return _wrapped(handler, str(handler_call_details.method)) if handler is not None else None


def _wrapped(handler: Any, method: str) -> Any:
    """The same method handler, whose failures are mapped. (gRPC's own types are for its synchronous server only.)"""
    codecs = (handler.request_deserializer, handler.response_serializer)
    if handler.response_streaming:
        streaming = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async for message in streaming(request, context):
                    yield message
            except Exception as error:  # noqa: BLE001 - the request boundary: a defect ends one call, not the server
                await _fail(context, method, error)

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(cast(Any, stream), *codecs)
        return grpc.unary_stream_rpc_method_handler(cast(Any, stream), *codecs)

    single = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def answer(request: Any, context: Context) -> Any:
        try:
            return await single(request, context)
        except Exception as error:  # noqa: BLE001 - the request boundary: a defect ends one call, not the server
            await _fail(context, method, error)

    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(cast(Any, answer), *codecs)
    return grpc.unary_unary_rpc_method_handler(cast(Any, answer), *codecs)


async def _fail(context: Context, method: str, error: Exception) -> NoReturn:
    if isinstance(error, CorralError):
        await abort(context, error)
    if isinstance(error, grpc.aio.AbortError):
        raise error
    incident = secrets.token_hex(4)
    _logger.error("rpc-failed", method=method, incident=incident, exc_info=error)
    await abort(context, CorralError(f"internal error; the scheduler's log tells more under {incident}"))
