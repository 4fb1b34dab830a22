"""The scheduler's action cache over gRPC, for workers that execute what clients bring them directly.

``ResultsServicer`` is the scheduler's end; ``SchedulerResults`` is ``ports.ActionCache`` at the worker's.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc
import msgspec

from corral.actions.model import StoredResult
from corral.actions.ports import ActionCache
from corral.fleet.adapters.grpc_link import LinkSession, SchedulerLink
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, StoreUnavailable, Unauthenticated
from corral.ledger.model import AuditRow, SecurityEvent
from corral.wire.errors import error_of_rpc
from corral.wire.server import Context
from corral.wire.sessions import session_token
from corral.wire.v1 import door_pb2, door_pb2_grpc
from corral.wire.v1.door_pb2_grpc import ResultsStub

_ANSWER_S = 10.0


class ResultsServicer(door_pb2_grpc.ResultsServicer):
    """Get and Update, for workers with a session (``admit`` gives the worker's id, or raises Unauthenticated)."""

    def __init__(
        self,
        cache: ActionCache,
        admit: Callable[[str], str],
        audit: Callable[[Sequence[AuditRow]], Awaitable[None]],
        record: Callable[[SecurityEvent], None],
    ) -> None:
        self._cache = cache
        self._admit = admit
        self._audit = audit
        self._record = record

    async def Get(self, request: door_pb2.ResultRequest, context: Context) -> door_pb2.ResultAnswer:
        self._admit(session_token(context))
        found = await self._cache.get(request.tenant, Digest.parse(request.action))
        if found is None:
            return door_pb2.ResultAnswer()
        return door_pb2.ResultAnswer(
            found=True, result=found.encoded, named=[str(each) for each in found.named], execution=found.execution
        )

    async def Update(self, request: door_pb2.ResultUpdates, context: Context) -> door_pb2.ResultUpdated:
        worker_id = self._admit(session_token(context))
        for encoded in request.security_events_json:
            try:
                event = msgspec.json.decode(encoded, type=SecurityEvent)
            except msgspec.DecodeError as error:
                raise InvalidSpec(f"security_events_json: {error}") from error
            self._record(msgspec.structs.replace(event, facts={**event.facts, "worker": worker_id}))
        rows = []
        for each in request.updates:
            try:
                row = msgspec.json.decode(each.audit_json, type=AuditRow)
            except msgspec.DecodeError as error:
                raise InvalidSpec(f"audit_json: {error}") from error
            rows.append(msgspec.structs.replace(row, worker_id=worker_id, tenant=each.tenant))
        await self._audit(rows)
        for each in request.updates:
            if each.result:
                stored = StoredResult(
                    encoded=each.result,
                    named=tuple(Digest.parse(name) for name in each.named),
                    execution=each.execution,
                )
                await self._cache.update(each.tenant, Digest.parse(each.action), stored)
        return door_pb2.ResultUpdated()


@dataclass(frozen=True, slots=True)
class EndedExecution:
    """An execution that a client brought directly, for the ledger; ``result`` None when it may not be cached."""

    tenant: str
    action: Digest
    result: StoredResult | None
    row: AuditRow


class SchedulerResults:
    """See ``ports.ActionCache``; what cannot be reached is StoreUnavailable."""

    def __init__(self, link: SchedulerLink) -> None:
        self._link = link

    async def get(self, tenant: str, action: Digest) -> StoredResult | None:
        session = await self._session()
        request = door_pb2.ResultRequest(tenant=tenant, action=str(action))
        try:
            answer = await ResultsStub(session.channel).Get(request, metadata=session.metadata, timeout=_ANSWER_S)
        except grpc.aio.AioRpcError as failure:
            raise self._meaning(session, failure) from failure
        if not answer.found:
            return None
        named = tuple(Digest.parse(each) for each in answer.named)
        return StoredResult(encoded=answer.result, named=named, execution=answer.execution)

    async def tell(self, ended: Sequence[EndedExecution]) -> None:
        """Leave the audit rows of executions, and the results that may be cached. Raises StoreUnavailable."""
        session = await self._session()
        request = door_pb2.ResultUpdates()
        for each in ended:
            update = request.updates.add(
                tenant=each.tenant, action=str(each.action), audit_json=msgspec.json.encode(each.row)
            )
            if each.result is not None:
                update.result = each.result.encoded
                update.named.extend(str(name) for name in each.result.named)
                update.execution = each.result.execution
        await self._update(session, request)

    async def tell_refusals(self, events: Sequence[SecurityEvent]) -> None:
        """Leave whom this worker's door turned away, for the ledger. Raises StoreUnavailable."""
        encoded = [msgspec.json.encode(each) for each in events]
        await self._update(await self._session(), door_pb2.ResultUpdates(security_events_json=encoded))

    async def _update(self, session: LinkSession, request: door_pb2.ResultUpdates) -> None:
        try:
            await ResultsStub(session.channel).Update(request, metadata=session.metadata, timeout=_ANSWER_S)
        except grpc.aio.AioRpcError as failure:
            raise self._meaning(session, failure) from failure

    async def _session(self) -> LinkSession:
        if not self._link.connected:
            raise StoreUnavailable(self._link.trouble or "the scheduler's action cache cannot be reached")
        return await self._link.wait_session()

    def _meaning(self, session: LinkSession, failure: grpc.aio.AioRpcError) -> Exception:
        error = error_of_rpc(failure)
        if isinstance(error, Unauthenticated):
            self._link.session_refused(session)
        return StoreUnavailable(f"the scheduler's action cache: {error.message}")
