"""The worker's end of live logs: one stream carries the bytes of all runs, and nothing is lost with it.

What the scheduler has not yet put on its disk is kept here, within bounds, and sent again after a loss of the stream;
a full buffer makes writers wait. ``GrpcLogSink.run()`` must run while it is used.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import msgspec

from corral.fleet.adapters.grpc_link import LinkSession, SchedulerLink
from corral.fleet.adapters.messages import ref_from_message, ref_to_message
from corral.kernel.concurrency import Signal, raise_if_cancelled
from corral.kernel.errors import Conflict, CorralError, Unauthenticated
from corral.tasks.ports import RunRef
from corral.wire.errors import error_of_code, error_of_rpc
from corral.wire.streams import sent
from corral.wire.v1 import fleet_pb2
from corral.wire.v1.fleet_pb2_grpc import QueueStub

_Stream = Any  # grpc.aio.StreamStreamCall[LogChunk, LogAck]; subscriptable in the stubs only


class LogSinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of what waits for the scheduler: per run, of all runs, per message; and the pause after a failure."""

    run_bytes: int = 4 * 1024**2
    total_bytes: int = 32 * 1024**2
    piece_bytes: int = 64 * 1024
    retry_s: float = 0.2


@dataclass(slots=True, eq=False)
class _Run:
    """Bytes from ``base`` on that the scheduler does not have for sure; up to ``sent`` they are on their way."""

    held: bytearray = field(default_factory=bytearray)
    base: int = 0
    sent: int = 0
    size: int | None = None
    end_sent: bool = False
    closed: bool = False
    error: CorralError | None = None
    changed: Signal = field(default_factory=Signal)

    @property
    def end(self) -> int:
        return self.base + len(self.held)

    def rewind(self) -> None:
        self.sent = self.base
        self.end_sent = False


class GrpcLogSink:
    """``LogSink`` over a :class:`SchedulerLink`."""

    def __init__(self, link: SchedulerLink, config: LogSinkConfig | None = None) -> None:
        self._link = link
        self._config = config or LogSinkConfig()
        self._runs: dict[RunRef, _Run] = {}
        self._held_bytes = 0
        self._space = Signal()
        self._work = asyncio.Event()

    async def append(self, ref: RunRef, offset: int, data: bytes) -> int:
        """See ``LogSink``. Waits while the buffers are full.

        Raises: Conflict when the run is not ours any more, or ``offset`` leaves a hole.
        Cancellation: some of ``data`` may have been taken; repeat it with its offset.
        """
        run = self._runs.setdefault(ref, _Run())
        if offset > run.end:
            raise Conflict(f"the log has {run.end} bytes; {offset} would leave a hole", received=run.end)
        rest = memoryview(data)[max(0, run.end - offset) :]
        while rest:
            if run.error is not None:
                raise run.error
            room = min(self._config.run_bytes - len(run.held), self._config.total_bytes - self._held_bytes)
            if room <= 0:
                await self._space.wait_notified(within_s=3600)
                continue
            taken, rest = rest[:room], rest[room:]
            run.held += taken
            self._held_bytes += len(taken)
            self._work.set()
        if run.error is not None:
            raise run.error
        return run.base

    async def close(self, ref: RunRef, size_bytes: int) -> None:
        """See ``LogSink``. Waits until the scheduler has everything, through any absence of it.

        Raises: Conflict when the run is not ours any more.
        Cancellation: what the scheduler does not have yet is lost.
        """
        run = self._runs.get(ref)
        if run is None:
            return
        run.size = size_bytes
        self._work.set()
        try:
            while not run.closed and run.error is None:
                await run.changed.wait_notified(within_s=3600)
        finally:
            del self._runs[ref]
            self._release(run, len(run.held))
        if run.error is not None:
            raise run.error

    async def run(self) -> NoReturn:
        """Carry bytes until cancelled."""
        while True:
            await self._work.wait()
            session = await self._link.wait_session()
            try:
                await self._carry(session)
            except* grpc.aio.AioRpcError as errors:
                if isinstance(error_of_rpc(_first(errors)), Unauthenticated):
                    self._link.session_refused(session)
            raise_if_cancelled()
            await asyncio.sleep(self._config.retry_s)

    async def _carry(self, session: LinkSession) -> None:
        call = QueueStub(session.channel).AppendLog(metadata=session.metadata)  # type: ignore[call-arg]
        for run in self._runs.values():
            run.rewind()
        self._work.set()
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send(call), name="logs:send")
                await self._hear(call)
                sending.cancel()
        finally:
            call.cancel()

    async def _send(self, call: _Stream) -> None:
        """Send what there is to send, until cancelled or until the call has ended: whoever hears is told how."""
        while True:
            self._work.clear()
            pieces = [piece for ref, run in self._runs.items() if (piece := self._piece(ref, run)) is not None]
            for piece in pieces:  # one of each run in turn: a busy log does not hold up the others
                if not await sent(call, piece):
                    return
            if not pieces:
                await self._work.wait()

    def _piece(self, ref: RunRef, run: _Run) -> fleet_pb2.LogChunk | None:
        if run.error is not None or run.end_sent:
            return None
        start = run.sent - run.base
        data = bytes(run.held[start : start + self._config.piece_bytes])
        ends = run.size is not None and run.sent + len(data) >= run.end
        if not data and not ends:
            return None
        offset, run.sent, run.end_sent = run.sent, run.sent + len(data), ends
        return fleet_pb2.LogChunk(ref=ref_to_message(ref), offset=offset, data=data, end=ends)

    async def _hear(self, call: _Stream) -> None:
        while isinstance(ack := await call.read(), fleet_pb2.LogAck):
            run = self._runs.get(ref_from_message(ack.ref))
            if run is not None:
                self._heard(run, ack)
        # The scheduler ended the stream; the next one sends again what is not durable.

    def _heard(self, run: _Run, ack: fleet_pb2.LogAck) -> None:
        if ack.durable_bytes > run.base:
            done = min(ack.durable_bytes - run.base, len(run.held))
            del run.held[:done]
            run.base += done
            run.sent = max(run.sent, run.base)
            self._release(run, done)
        if ack.error_code:
            error = error_of_code(ack.error_code, ack.error)
            if error.retryable:
                asyncio.get_running_loop().call_later(self._config.retry_s, self._again, run)
            else:
                run.error = error
                self._release(run, len(run.held))
                run.held.clear()
                self._space.notify()
        run.closed = run.closed or ack.closed
        run.changed.notify()

    def _again(self, run: _Run) -> None:
        run.rewind()
        self._work.set()

    def _release(self, run: _Run, count: int) -> None:
        self._held_bytes -= count
        if count:
            self._space.notify()


def _first(errors: BaseExceptionGroup[grpc.aio.AioRpcError]) -> grpc.aio.AioRpcError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
