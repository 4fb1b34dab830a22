"""The scheduler's end of the stream of functions."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc
import msgspec

from corral.fleet.adapters.grpc_server import session_of
from corral.fleet.service import Fleet
from corral.functions.conductor import Conductor
from corral.functions.config import FunctionsConfig
from corral.functions.logs import FunctionLogs
from corral.functions.members import Attendance
from corral.functions.model import FunctionsReport, LogLine
from corral.wire.server import Context
from corral.wire.v1 import functions_pb2, functions_pb2_grpc

_decode_report: Final = msgspec.json.Decoder(FunctionsReport).decode
_decode_lines: Final = msgspec.json.Decoder(tuple[LogLine, ...]).decode


class FunctionsServicer(functions_pb2_grpc.FunctionsServicer):
    """Attend, for workers with a session."""

    def __init__(self, fleet: Fleet, conductor: Conductor, logs: FunctionLogs, config: FunctionsConfig) -> None:
        self._fleet = fleet
        self._conductor = conductor
        self._logs = logs
        self._config = config

    async def Attend(  # type: ignore[override]  # gRPC's second form of a stream: read here, write there
        self, request_iterator: AsyncIterator[functions_pb2.FunctionsUp], context: Context
    ) -> None:
        attendance = self._conductor.attend(session_of(self._fleet, context).worker_id)
        try:
            async with asyncio.TaskGroup() as group:
                hearing = group.create_task(self._hear(attendance, request_iterator), name="functions:hear")
                await self._tell(attendance, context, hearing)
                hearing.cancel()
        except* grpc.aio.UsageError:
            pass  # the worker went away while we wrote
        finally:
            self._conductor.stream_lost(attendance)

    async def _hear(self, attendance: Attendance, messages: AsyncIterator[functions_pb2.FunctionsUp]) -> None:
        async for message in messages:
            if message.want_routes:
                attendance.told_routes = None
                attendance.news.set()
            if message.report_json:
                self._conductor.heard(attendance, _decode_report(message.report_json))
            if message.lines_json:
                self._logs.append_nowait(_decode_lines(message.lines_json))
            self._logs.dropped += message.lines_dropped
        attendance.current = False
        attendance.news.set()

    async def _tell(self, attendance: Attendance, context: Context, hearing: "asyncio.Task[None]") -> None:
        """Write what changed, at once."""
        while attendance.current and not hearing.done():
            attendance.news.clear()
            message = functions_pb2.FunctionsDown(report_s=self._config.report_s, drain_s=self._config.drain_s)
            orders = self._conductor.orders(attendance.worker)
            routes, table = self._conductor.routes_since(attendance.told_routes), self._conductor.table
            if routes is not None:
                message.routes_json = msgspec.json.encode(routes)
            if orders is not None and orders != attendance.told_orders:
                message.orders_json = msgspec.json.encode(orders)
            if message.routes_json or message.orders_json:
                await context.write(message)
                attendance.told_orders = orders
                if routes is not None:
                    attendance.told_routes = table
            else:
                await attendance.news.wait()
