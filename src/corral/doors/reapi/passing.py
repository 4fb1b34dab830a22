"""Executions at a door that is a process of its own: passed on to the scheduler, which has the queue.

Both ends are ours: the door has found out who calls and what they may, and tells the tenant in the metadata; the
scheduler believes whoever reaches its socket, which lies in a folder that only our user may enter.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc

from corral.doors.reapi.entrance import EXECUTE, READ_RESULTS, Admission
from corral.doors.reapi.execution import split_name
from corral.kernel.errors import Unauthenticated
from corral.wire.reapi import operations_pb2 as operations
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.server import Context

_TENANT_KEY: Final = "corral-tenant"
_EXECUTION: Final = "build.bazel.remote.execution.v2.Execution"
_OPERATIONS: Final = "google.longrunning.Operations"


class AdmittedElsewhere:
    """``Admission`` at the scheduler's end: whom the door has let in."""

    def tenant(self, context: Context, instance: str, scope: str) -> str:
        """See ``Entrance.tenant``."""
        for key, value in context.invocation_metadata() or ():
            if key == _TENANT_KEY and isinstance(value, str):
                return value
        raise Unauthenticated("this socket is for the doors' own processes")


class PassedOn:
    """The methods of executions and operations at the door's end; ``add_to`` registers them.

    What the scheduler answers goes to the client as it is, its failures too. One that cannot be reached is UNAVAILABLE,
    and clients come back to their operations when it is there again.
    """

    def __init__(self, entrance: Admission, scheduler: grpc.aio.Channel) -> None:
        self._entrance = entrance
        self._scheduler: Any = scheduler  # the stubs want types, and bytes are passed on

    def add_to(self, server: Any) -> None:
        """Register with a server."""
        for service, methods in (
            (
                _EXECUTION,
                {
                    "Execute": self._stream(_EXECUTION, "Execute", self._of_execute),
                    "WaitExecution": self._stream(_EXECUTION, "WaitExecution", self._of_wait),
                },
            ),
            (
                _OPERATIONS,
                {
                    "GetOperation": self._single(_OPERATIONS, "GetOperation", self._of_get),
                    "CancelOperation": self._single(_OPERATIONS, "CancelOperation", self._of_cancel),
                },
            ),
        ):
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))

    def _of_execute(self, request: bytes, context: Context) -> str:
        instance = reapi.ExecuteRequest.FromString(request).instance_name
        return self._entrance.tenant(context, instance, EXECUTE)

    def _of_wait(self, request: bytes, context: Context) -> str:
        tenant, _ = split_name(reapi.WaitExecutionRequest.FromString(request).name)
        return self._entrance.tenant(context, tenant, EXECUTE)

    def _of_get(self, request: bytes, context: Context) -> str:
        tenant, _ = split_name(operations.GetOperationRequest.FromString(request).name)
        return self._entrance.tenant(context, tenant, READ_RESULTS)

    def _of_cancel(self, request: bytes, context: Context) -> str:
        tenant, _ = split_name(operations.CancelOperationRequest.FromString(request).name)
        return self._entrance.tenant(context, tenant, EXECUTE)

    def _stream(self, service: str, method: str, admit: Callable[[bytes, Context], str]) -> Any:
        ask = self._scheduler.unary_stream(f"/{service}/{method}")

        async def passed(request: bytes, context: Context) -> AsyncIterator[bytes]:
            call = ask(request, metadata=((_TENANT_KEY, admit(request, context)),))
            try:
                async for answer in call:
                    yield answer
            except grpc.aio.AioRpcError as failure:
                await _fail_as(context, failure)
            finally:
                call.cancel()

        return grpc.unary_stream_rpc_method_handler(passed)

    def _single(self, service: str, method: str, admit: Callable[[bytes, Context], str]) -> Any:
        ask = self._scheduler.unary_unary(f"/{service}/{method}")

        async def passed(request: bytes, context: Context) -> bytes:
            try:
                answer: Awaitable[bytes] = ask(request, metadata=((_TENANT_KEY, admit(request, context)),))
                return await answer
            except grpc.aio.AioRpcError as failure:
                await _fail_as(context, failure)
                raise AssertionError("abort returned") from failure

        return grpc.unary_unary_rpc_method_handler(passed)


async def _fail_as(context: Context, failure: grpc.aio.AioRpcError) -> None:
    told: Any = failure.trailing_metadata()
    await context.abort(failure.code(), failure.details() or "", tuple(told or ()))
