"""The scheduler's end of the queue's protocol: claims, renewals, reports, and the bytes of live logs."""

import asyncio
from collections.abc import AsyncIterator

from corral.fleet.adapters.grpc_server import session_of
from corral.fleet.adapters.messages import ref_from_message, ref_to_message, refs_from_messages
from corral.fleet.service import Fleet
from corral.kernel.errors import Conflict, CorralError, InvalidSpec, StoreUnavailable
from corral.tasks.adapters.messages import claim_to_message, report_from_message
from corral.tasks.adapters.run_owner import TenantOfRun
from corral.tasks.logs import LogKey, LogStore
from corral.tasks.model import RunReport
from corral.tasks.ports import RunRef
from corral.tasks.queue import Queue
from corral.wire.server import Context
from corral.wire.v1 import fleet_pb2, fleet_pb2_grpc

_CLAIM_SLICE_S = 2.0  # how long a waiting claim may go on after the worker was told to drain
_RUNS_PER_STREAM = 10_000


class QueueServicer(fleet_pb2_grpc.QueueServicer):
    """Claim, Reclaim, Report, AppendLog; each for the worker whose session calls."""

    def __init__(self, fleet: Fleet, queue: Queue, logs: LogStore, tenant_of: TenantOfRun) -> None:
        self._fleet = fleet
        self._queue = queue
        self._logs = logs
        self._tenant_of = tenant_of

    async def Claim(self, request: fleet_pb2.ClaimRequest, context: Context) -> fleet_pb2.ClaimResponse:
        session = session_of(self._fleet, context)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + min(max(request.wait_s, 0.0), 60.0)
        while True:
            left_s = until_s - loop.time()
            runtimes = await self._fleet.wait_feasible(session, within_s=left_s)
            if runtimes is None:
                return fleet_pb2.ClaimResponse()
            wait_s = min(max(until_s - loop.time(), 0.0), _CLAIM_SLICE_S)
            claims = await self._queue.claim(session.worker_id, request.slots, wait_s=wait_s, runtimes=runtimes)
            if claims or until_s <= loop.time():
                return fleet_pb2.ClaimResponse(claims=[claim_to_message(claim) for claim in claims])

    async def Reclaim(self, request: fleet_pb2.ReclaimRequest, context: Context) -> fleet_pb2.ReclaimResponse:
        session = session_of(self._fleet, context)
        renewed = await self._queue.reclaim(session.worker_id, refs_from_messages(request.refs))
        return fleet_pb2.ReclaimResponse(
            results=[
                fleet_pb2.ReclaimResult(ref=ref_to_message(ref), lost=until_s is None, lease_until_s=until_s or 0.0)
                for ref, until_s in renewed.items()
            ]
        )

    async def Report(self, request: fleet_pb2.ReportRequest, context: Context) -> fleet_pb2.ReportResponse:
        session = session_of(self._fleet, context)
        readable: list[tuple[RunRef, RunReport]] = []
        places: list[int] = []
        answers: list[CorralError | None] = [None] * len(request.reports)
        for place, message in enumerate(request.reports):
            try:
                readable.append(report_from_message(message))
                places.append(place)
            except InvalidSpec as error:
                answers[place] = error
        wanted = request.claim_slots
        runtimes = await self._fleet.wait_feasible(session, within_s=0.0) if wanted else None
        heard, claims = await self._queue.report_and_claim(
            session.worker_id, readable, 0 if runtimes is None else wanted, runtimes=runtimes or ()
        )
        for place, answer in zip(places, heard, strict=True):
            answers[place] = answer
        return fleet_pb2.ReportResponse(
            claims=[claim_to_message(claim) for claim in claims],
            results=[
                fleet_pb2.ReportResult(
                    ref=message.ref,
                    error_code=error.code if error is not None else "",
                    error=error.message if error is not None else "",
                )
                for message, error in zip(request.reports, answers, strict=True)
            ],
        )

    async def AppendLog(  # type: ignore[override]  # gRPC's second form of a stream: read here, write there
        self, request_iterator: AsyncIterator[fleet_pb2.LogChunk], context: Context
    ) -> None:
        session = session_of(self._fleet, context)
        stream = _LogStream(self._logs, self._tenant_of, session.worker_id)
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(stream.tell(context), name="log:tell")
            watching = group.create_task(stream.watch_syncs(), name="log:syncs")
            async for chunk in request_iterator:
                await stream.hear(chunk)
            telling.cancel()
            watching.cancel()


class _LogStream:
    """One worker's stream of log bytes. Answers wait in ``_acks``, one per run, so that they take no memory."""

    def __init__(self, logs: LogStore, tenant_of: TenantOfRun, worker_id: str) -> None:
        self._logs = logs
        self._tenant_of = tenant_of
        self._worker_id = worker_id
        self._keys: dict[RunRef, LogKey] = {}
        self._told: dict[RunRef, int] = {}
        self._acks: dict[RunRef, fleet_pb2.LogAck] = {}
        self._news = asyncio.Event()

    async def hear(self, chunk: fleet_pb2.LogChunk) -> None:
        """Store a piece; whatever is wrong with it ends that run's log only."""
        ref = ref_from_message(chunk.ref)
        try:
            key = self._keys.get(ref) or await self._admit(ref)
            if chunk.data:
                self._logs.append(key, chunk.offset, chunk.data)
            if chunk.end:
                self._logs.close(key, chunk.offset + len(chunk.data))
                self._answer(ref, durable=chunk.offset + len(chunk.data), closed=True)
        except CorralError as error:
            if isinstance(error, Conflict) and "received" in error.context:
                error = StoreUnavailable(error.message)  # bytes before these were lost: the worker sends them again
            self._answer(ref, durable=self._told.get(ref, 0), error=error)

    async def tell(self, context: Context) -> None:
        """Write the answers."""
        while True:
            await self._news.wait()
            self._news.clear()
            acks, self._acks = self._acks, {}
            for ack in acks.values():
                await context.write(ack)

    async def watch_syncs(self) -> None:
        """Answer how much of each log is on the disk, whenever that is more."""
        while True:
            await self._logs.wait_synced(within_s=3600)
            for ref, key in self._keys.items():
                durable = self._logs.durable_bytes(key)
                if durable > self._told[ref] and ref not in self._acks:
                    self._told[ref] = durable
                    self._acks[ref] = fleet_pb2.LogAck(ref=ref_to_message(ref), durable_bytes=durable)
                    self._news.set()

    async def _admit(self, ref: RunRef) -> LogKey:
        if len(self._keys) >= _RUNS_PER_STREAM:
            raise StoreUnavailable(f"one worker writes more than {_RUNS_PER_STREAM} logs at once")
        key = LogKey(await self._tenant_of(self._worker_id, ref), ref.task_id, ref.run)
        self._keys[ref] = key
        self._told[ref] = 0
        return key

    def _answer(self, ref: RunRef, *, durable: int, closed: bool = False, error: CorralError | None = None) -> None:
        if closed or error is not None:
            self._keys.pop(ref, None)
            self._told.pop(ref, None)
        self._acks[ref] = fleet_pb2.LogAck(
            ref=ref_to_message(ref),
            durable_bytes=durable,
            closed=closed,
            error_code=error.code if error is not None else "",
            error=error.message if error is not None else "",
        )
        self._news.set()
