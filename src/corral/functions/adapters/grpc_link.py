"""The worker's end of the stream of functions: kept open on the link's session, whatever the scheduler does."""

import asyncio
from typing import Any, Final, NoReturn

import grpc
import msgspec
import structlog

from corral.fleet.adapters.grpc_link import LinkSession, SchedulerLink
from corral.functions.attendant import Attendant
from corral.functions.model import FunctionsOrders
from corral.functions.routing import RoutingUpdate
from corral.kernel.concurrency import raise_if_cancelled
from corral.kernel.errors import SchedulerUnavailable, Unauthenticated
from corral.wire.errors import error_of_rpc
from corral.wire.streams import sent
from corral.wire.v1 import functions_pb2
from corral.wire.v1.functions_pb2_grpc import FunctionsStub

_RETRY_S: Final = 0.1
_WHEN_IDLE: Final = 10  # times as long between reports that hold nothing
_GAP_S: Final = 0.001  # what happens at once travels together
_GAP_SHARE: Final = 5  # and a report that is long to make comes the less often
_ENDS: Final = (grpc.aio.AioRpcError, SchedulerUnavailable, asyncio.InvalidStateError)
_decode_orders: Final = msgspec.json.Decoder(FunctionsOrders).decode
_decode_routes: Final = msgspec.json.Decoder(RoutingUpdate).decode
_logger = structlog.get_logger("corral.functions.link")
Call = Any  # gRPC's own type of a stream is generic in the stubs only


class FunctionsStream:
    """``run`` it beside the link and the attendant."""

    def __init__(self, link: SchedulerLink, attendant: Attendant) -> None:
        self._link = link
        self._attendant = attendant
        self._report_s = 1.0
        self._loop = asyncio.get_running_loop()

    async def run(self) -> NoReturn:
        """Keep the stream open until cancelled."""
        while True:
            session = await self._link.wait_session()
            try:
                await self._converse(session)
            except BaseExceptionGroup as errors:
                raise_if_cancelled()
                if errors.split(_ENDS)[1] is not None:
                    raise
                self._lost(session, errors)
            await asyncio.sleep(_RETRY_S)

    async def _converse(self, session: LinkSession) -> None:
        self._attendant.want_routes = True
        call: Call = FunctionsStub(session.channel).Attend(metadata=session.metadata)  # type: ignore[call-arg]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell(call), name="functions:tell")
                await self._hear(call)
        finally:
            call.cancel()

    async def _tell(self, call: Call) -> None:
        """Until cancelled or until the call has ended: whoever hears is told how."""
        attendant = self._attendant
        while True:
            attendant.news.clear()
            lines, dropped = attendant.take_lines()
            wanted, attendant.want_routes = attendant.want_routes, False
            began_s = self._loop.time()
            report = attendant.report()
            message = functions_pb2.FunctionsUp(
                report_json=msgspec.json.encode(report),
                lines_json=msgspec.json.encode(lines) if lines else b"",
                lines_dropped=dropped,
                want_routes=wanted,
            )
            made_s = self._loop.time() - began_s
            if not await sent(call, message):
                return
            await asyncio.sleep(max(_GAP_S, _GAP_SHARE * made_s))
            if attendant.lines_waiting:
                continue
            try:
                busy = report.instances or report.demands
                async with asyncio.timeout(self._report_s if busy else self._report_s * _WHEN_IDLE):
                    await attendant.news.wait()
            except TimeoutError:
                continue

    async def _hear(self, call: Call) -> None:
        while True:
            message = await call.read()
            if not isinstance(message, functions_pb2.FunctionsDown):
                raise SchedulerUnavailable("the scheduler ended the stream of functions")
            self._report_s = message.report_s
            if message.orders_json:
                self._attendant.ordered(_decode_orders(message.orders_json), drain_s=message.drain_s)
            if message.routes_json:
                self._attendant.routed(_decode_routes(message.routes_json))

    def _lost(self, session: LinkSession, errors: BaseExceptionGroup[BaseException]) -> None:
        failure: BaseException = errors
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        error = error_of_rpc(failure) if isinstance(failure, grpc.aio.AioRpcError) else failure
        if isinstance(error, Unauthenticated):
            self._link.session_refused(session)
        _logger.info("functions-stream-lost", error=str(error))
