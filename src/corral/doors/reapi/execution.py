"""Execution: run actions, follow them, come back to them; and the part of Operations that clients use.

An operation's name is ``{tenant}/operations/{execution}``: it stays good over a restart of the scheduler.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from corral.actions.adapters.messages import digest_from, digest_to
from corral.actions.model import Ended, ExecutionOutcome, ExecutionUpdate, Stage
from corral.doors.reapi.entrance import EXECUTE, READ_RESULTS, Admission
from corral.doors.reapi.failures import CANCELLED, DEADLINE_EXCEEDED, status_message
from corral.doors.reapi.inline import Inliner, Wanted
from corral.doors.reapi.names import ON_WIRE, function_of
from corral.doors.reapi.services import Actions
from corral.kernel.errors import Conflict, CorralError, NotFound
from corral.wire.reapi import operations_pb2 as operations
from corral.wire.reapi import operations_pb2_grpc as operations_grpc
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi import remote_execution_pb2_grpc as reapi_grpc
from corral.wire.reapi.status_pb2 import Status
from corral.wire.server import Context

_STAGES: Final = {
    Stage.CACHE_CHECK: reapi.ExecutionStage.CACHE_CHECK,
    Stage.QUEUED: reapi.ExecutionStage.QUEUED,
    Stage.EXECUTING: reapi.ExecutionStage.EXECUTING,
    Stage.COMPLETED: reapi.ExecutionStage.COMPLETED,
}
_INFIX: Final = "/operations/"


class ExecutionServicer(reapi_grpc.ExecutionServicer):
    """Streams one operation per change of stage; the last one carries the answer."""

    def __init__(self, entrance: Admission, actions: Actions, inliner: Inliner) -> None:
        self._entrance = entrance
        self._actions = actions
        self._inliner = inliner

    async def Execute(self, request: reapi.ExecuteRequest, context: Context) -> AsyncIterator[operations.Operation]:
        tenant = self._entrance.tenant(context, request.instance_name, EXECUTE)
        action = digest_from(request.action_digest, function_of(request.digest_function), "action_digest")
        updates = self._actions.execute(
            tenant,
            action,
            skip_cache_lookup=request.skip_cache_lookup,
            priority=request.execution_policy.priority,
        )
        async for operation in self._told(tenant, updates, Wanted.of(request)):
            yield operation

    async def WaitExecution(
        self, request: reapi.WaitExecutionRequest, context: Context
    ) -> AsyncIterator[operations.Operation]:
        tenant, execution = split_name(request.name)
        tenant = self._entrance.tenant(context, tenant, EXECUTE)
        async for operation in self._told(tenant, self._actions.wait(tenant, execution), None):
            yield operation

    async def _told(
        self, tenant: str, updates: AsyncGenerator[ExecutionUpdate, None], wanted: Wanted | None
    ) -> AsyncGenerator[operations.Operation, None]:
        async with aclosing(updates):
            async for update in updates:
                yield await operation_of(tenant, update, self._inliner, wanted)


class OperationsServicer(operations_grpc.OperationsServicer):
    """GetOperation, for clients that poll; CancelOperation."""

    def __init__(self, entrance: Admission, actions: Actions, inliner: Inliner) -> None:
        self._entrance = entrance
        self._actions = actions
        self._inliner = inliner

    async def GetOperation(self, request: operations.GetOperationRequest, context: Context) -> operations.Operation:
        tenant, execution = split_name(request.name)
        tenant = self._entrance.tenant(context, tenant, READ_RESULTS)
        async with aclosing(self._actions.wait(tenant, execution)) as updates:
            return await operation_of(tenant, await anext(updates), self._inliner, None)

    async def CancelOperation(self, request: operations.CancelOperationRequest, context: Context) -> Empty:
        tenant, execution = split_name(request.name)
        await self._actions.cancel(self._entrance.tenant(context, tenant, EXECUTE), execution)
        return Empty()


def split_name(name: str) -> tuple[str, str]:
    """Tenant and execution of an operation. Raises NotFound for a name that we never gave."""
    tenant, infix, execution = name.partition(_INFIX)
    if not infix or not tenant or not execution:
        raise NotFound(f'there is no operation "{name[:120]}"')
    return tenant, execution


async def operation_of(
    tenant: str, update: ExecutionUpdate, inliner: Inliner, wanted: Wanted | None
) -> operations.Operation:
    """An update as the protocol writes it."""
    operation = operations.Operation(name=f"{tenant}{_INFIX}{update.execution}")
    metadata = reapi.ExecuteOperationMetadata(
        stage=_STAGES[update.stage],
        action_digest=digest_to(update.action),
        digest_function=ON_WIRE[update.action.function],
    )
    metadata.partial_execution_metadata.worker = update.worker
    operation.metadata.Pack(metadata)
    if update.outcome is not None:
        operation.done = True
        answer = reapi.ExecuteResponse(
            cached_result=update.outcome.cached, message=update.outcome.message, status=_status(update.outcome)
        )
        if update.outcome.result is not None:
            encoded = update.outcome.result
            if wanted is not None:
                encoded = await inliner.fill(tenant, encoded, wanted, update.action.function)
            answer.result.MergeFromString(encoded)
        operation.response.CopyFrom(_packed(answer))
    return operation


def _status(outcome: ExecutionOutcome) -> Status:
    """OK whenever the command ran to an end of its own, whatever its exit code or the signal that it died of."""
    if isinstance(outcome.error, Conflict):
        return Status(code=CANCELLED, message=str(outcome.error))
    if isinstance(outcome.error, CorralError):
        return status_message(outcome.error)
    if outcome.error is not None:
        return status_message(CorralError("the scheduler failed on this action"))
    if outcome.ended is Ended.TIMED_OUT:
        return Status(code=DEADLINE_EXCEEDED, message=outcome.message)
    return Status()


def _packed(answer: reapi.ExecuteResponse) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(answer)
    return packed
