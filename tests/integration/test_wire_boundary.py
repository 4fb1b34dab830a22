"""The request boundary of a real gRPC server."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError

from corral.kernel.errors import NotFound
from corral.wire.errors import error_of_rpc
from corral.wire.server import ErrorBoundary


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Raises what it is asked to, in all four shapes of a call."""

    def service(self, handler_call_details: Any) -> Any:
        def fail(request: Any) -> None:
            raise {b"ours": NotFound("no such thing"), b"foreign": ZeroDivisionError("secret detail")}[request]

        async def unary(request: Any, context: Any) -> bytes:
            fail(request)
            return b""

        async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
            yield b"first"
            fail(request)

        async def converse(requests: Any, context: Any) -> None:
            await context.write(b"first")
            async for request in requests:
                fail(request)

        make: Any = {
            "/echo/unary": lambda: grpc.unary_unary_rpc_method_handler(unary),
            "/echo/stream": lambda: grpc.unary_stream_rpc_method_handler(stream),
            "/echo/converse": lambda: grpc.stream_stream_rpc_method_handler(converse),
        }.get(handler_call_details.method, lambda: None)
        return make()


async def ask(channel: Any, shape: str, what: bytes) -> None:
    if shape == "unary":
        await channel.unary_unary("/echo/unary")(what)
        return
    call: Any = channel.unary_stream("/echo/stream")(what)
    if shape == "converse":
        call = channel.stream_stream("/echo/converse")(iter([what]))
    async for _ in call:
        pass


@pytest.mark.parametrize("shape", ["unary", "stream", "converse"])
async def test_the_boundary_maps_our_errors_and_hides_foreign_ones(shape: str) -> None:
    boundary = ErrorBoundary()
    boundary.add_generic_rpc_handlers((Echo(),))
    server = grpc.aio.server(handlers=[boundary])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
            channel: Any = opened
            with pytest.raises(AioRpcError) as ours:
                await ask(channel, shape, b"ours")
            with pytest.raises(AioRpcError) as foreign:
                await ask(channel, shape, b"foreign")
            with pytest.raises(AioRpcError) as unknown:
                await channel.unary_unary("/echo/nothing")(b"")
    finally:
        await server.stop(None)

    assert isinstance(error_of_rpc(ours.value), NotFound)
    assert ours.value.code() is grpc.StatusCode.NOT_FOUND
    assert foreign.value.code() is grpc.StatusCode.INTERNAL
    assert "secret detail" not in str(foreign.value.details())
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
