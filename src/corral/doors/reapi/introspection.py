"""gRPC's own health checks and reflection, for load balancers and tools such as grpcurl.

Both are loaded by the first who asks: most servers are never asked, and idle memory counts. Neither needs a token,
since neither tells anything of a tenant's.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

import grpc

from corral.kernel.errors import NotFound
from corral.wire.server import Context


def add_health(server: grpc.aio.Server, services: Collection[str]) -> None:
    """``grpc.health.v1.Health``: a service that is listed is served as long as the process lives."""
    known = {"", *services}

    def status_of(request: bytes) -> bytes:
        from grpc_health.v1 import health_pb2  # noqa: PLC0415 - see the module's docstring

        name = health_pb2.HealthCheckRequest.FromString(request).service
        if name not in known:
            raise NotFound(f'there is no service "{name[:120]}"')
        return bytes(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString())

    async def check(request: bytes, context: Context) -> bytes:
        return status_of(request)

    async def watch(request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield status_of(request)
        await asyncio.Event().wait()  # it changes with the end of the connection only

    _add(
        server,
        "grpc.health.v1.Health",
        {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
        },
    )


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """``grpc.reflection.v1`` and its older name, which differ in nothing else."""

    async def reflect(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        from grpc_reflection.v1alpha import reflection_pb2  # noqa: PLC0415 - see the module's docstring
        from grpc_reflection.v1alpha._async import ReflectionServicer  # noqa: PLC0415

        answering = ReflectionServicer(services)

        async def asked() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            async for request in requests:
                yield reflection_pb2.ServerReflectionRequest.FromString(request)

        async for response in answering.ServerReflectionInfo(asked(), context):
            yield response.SerializeToString()

    for version in ("v1", "v1alpha"):
        handler = grpc.stream_stream_rpc_method_handler(reflect)
        _add(server, f"grpc.reflection.{version}.ServerReflection", {"ServerReflectionInfo": handler})


def _add(server: grpc.aio.Server, service: str, handlers: "dict[str, grpc.RpcMethodHandler[bytes, bytes]]") -> None:
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
