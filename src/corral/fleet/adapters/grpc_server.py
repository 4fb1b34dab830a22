"""The scheduler's end of the fleet's protocol, and the gRPC server that carries all services of the wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

import corral
from corral.fleet.adapters.messages import desired_to_message, registration_from_message, state_from_message
from corral.fleet.members import Attendance
from corral.fleet.model import DesiredState
from corral.fleet.service import Fleet
from corral.fleet.sessions import Session
from corral.kernel.concurrency import finish
from corral.kernel.errors import Conflict, InvalidSpec
from corral.wire.address import check_free
from corral.wire.server import Answer, Context, ErrorBoundary, abort
from corral.wire.sessions import session_token
from corral.wire.transport import ServerTls, WireLimits, is_loopback, server_credentials, server_options
from corral.wire.v1 import fleet_pb2, fleet_pb2_grpc


class FleetServicer(fleet_pb2_grpc.FleetServicer):
    """Authenticate, Register, Attend."""

    def __init__(self, fleet: Fleet, scheduler_id: str) -> None:
        self._fleet = fleet
        self._scheduler_id = scheduler_id

    async def Authenticate(
        self, request: fleet_pb2.AuthenticateRequest, context: Context
    ) -> fleet_pb2.AuthenticateResponse:
        token = self._fleet.authenticate(request.worker_token, request.worker_id, request.instance)
        return fleet_pb2.AuthenticateResponse(
            session_token=token, scheduler_id=self._scheduler_id, scheduler_version=corral.__version__
        )

    async def Register(self, request: fleet_pb2.RegisterRequest, context: Context) -> fleet_pb2.RegisterResponse:
        await self._fleet.register(session_of(self._fleet, context), registration_from_message(request))
        config = self._fleet.config
        return fleet_pb2.RegisterResponse(heartbeat_s=config.heartbeat_s, lease_s=config.lease_s)

    async def Attend(  # type: ignore[override]  # gRPC's second form of a stream: read here, write there
        self, request_iterator: AsyncIterator[fleet_pb2.WorkerState], context: Context
    ) -> None:
        attendance = self._fleet.attend(session_of(self._fleet, context))
        try:
            async with asyncio.TaskGroup() as group:
                hearing = group.create_task(self._hear(attendance, request_iterator), name="attend:hear")
                await self._tell(attendance, context, hearing)
                hearing.cancel()
        except* grpc.aio.UsageError:
            pass  # the worker went away while we wrote
        finally:
            self._fleet.stream_lost(attendance)

    async def _hear(self, attendance: Attendance, states: AsyncIterator[fleet_pb2.WorkerState]) -> None:
        async for message in states:
            self._fleet.heard(attendance, state_from_message(message))
        attendance.current = False
        attendance.news.set()

    async def _tell(self, attendance: Attendance, context: Context, hearing: "asyncio.Task[None]") -> None:
        """Write desired state whenever it changed, and now and then although it did not."""
        told: DesiredState | None = None
        loop = asyncio.get_running_loop()
        told_at_s = loop.time()
        await attendance.news.wait()  # the first state makes the worker ready; the answer tells it so
        while attendance.current and not hearing.done():
            attendance.news.clear()
            desired = await self._fleet.desired(attendance.session.worker_id)
            if desired != told or loop.time() - told_at_s >= desired.heartbeat_s / 2:
                await context.write(desired_to_message(desired))
                told, told_at_s = desired, loop.time()
            try:
                async with asyncio.timeout(self._fleet.config.desired_poll_s):
                    await attendance.news.wait()
            except TimeoutError:
                continue


def session_of(fleet: Fleet, context: Context) -> Session:
    """Which worker calls. Raises Unauthenticated."""
    return fleet.session(session_token(context))


@asynccontextmanager
async def serving(
    address: str,
    register: "list[Any]",
    *,
    limits: WireLimits,
    tls: ServerTls | None = None,
    section: str = "tls",
    setting: str = "--grpc",
    answer: Answer = abort,
    share_port: bool = False,
) -> AsyncIterator[int]:
    """Serve gRPC at ``host:port`` (port 0: a free one) or ``unix:path`` while the context is open; gives the port.

    ``register`` are functions that add a servicer to the server; ``section`` is where ``tls`` is configured,
    ``setting`` where the address is; ``answer`` writes our errors. With ``share_port`` several processes of ours listen
    at one port, which whoever started them has found free, and the kernel spreads connections over them. Leaving ends
    every call.

    Raises: InvalidSpec for plain text on an address that others can reach, and for one that is not this machine's;
    Conflict when the port is taken.
    """
    credentials = server_credentials(tls)
    if credentials is None and not is_loopback(address) and not (tls is not None and tls.plain):
        raise InvalidSpec(
            f"{address} can be reached from other machines, and no TLS certificate is configured",
            cure=f"give {section}.certificate and {section}.key, "
            f"or say {section}.plain = true if the network itself is safe",
        )
    if not (share_port or address.startswith("unix:")):
        check_free(address, setting=setting)
    boundary = ErrorBoundary(answer)
    for add in register:
        add(boundary)
    server = grpc.aio.server(handlers=[boundary], options=server_options(limits, share_port=share_port))
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise Conflict(f"{address} was taken by another process just now") from error
    await server.start()
    try:
        yield port
    finally:
        await finish(_stop(server), within_s=5)


async def _stop(server: grpc.aio.Server) -> None:
    await server.stop(grace=0)
