"""The socket of the daemon: frames in, frames out, strangers out at once."""

import asyncio
import hmac
import socket
from collections.abc import Awaitable, Callable
from typing import Final, cast

import msgspec
import structlog

from corral.compile import frames
from corral.compile.frames import MalformedFrame
from corral.compile.rendezvous import LISTEN_QUEUE, peer_uid
from corral.compile.service import CompileService

_log: Final = structlog.get_logger("compile")

Control = Callable[[dict[str, object]], Awaitable[dict[str, object]]]


class Connection(asyncio.Protocol):
    """One wrapper, or one command line."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @property
    def gone(self) -> bool:
        """See ``callers.Caller``."""
        return self._transport is None

    def reply(self, frame: bytes) -> None:
        """See ``callers.Caller``."""
        if self._transport is not None:
            self._transport.write(frame)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Lets in this user's processes only, and no more than ``connections``."""
        # uvloop's transports are of no asyncio class
        self._transport = transport = cast("asyncio.Transport", transport)
        peer: socket.socket = transport.get_extra_info("socket")
        if not self._server.admit(self, peer_uid(peer)):
            self.close()

    def data_received(self, data: bytes) -> None:
        """Answers every whole frame."""
        received = self._received
        received += data
        try:
            while len(received) >= 4 and len(received) >= (end := 4 + frames.frame_length(received)):
                frame = bytes(memoryview(received)[4:end])
                del received[:end]
                self._server.handle(frame, self)
        except MalformedFrame as error:
            _log.warning("a malformed frame", error=str(error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets what this wrapper was to report."""
        self._transport = None
        self._server.leave(self)

    def close(self) -> None:
        """Cut the peer off; idempotent."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None


class Server:
    """Frames to the service and to the command line's control."""

    def __init__(
        self, service: CompileService, control: Control, *, token: bytes, uid: int, connections_max: int
    ) -> None:
        self._service = service
        self._control = control
        self._token = token
        self._uid = uid
        self._connections_max = connections_max
        self._connections: set[Connection] = set()
        self._group: asyncio.TaskGroup

    async def serve(self, listening: socket.socket, stopping: asyncio.Event) -> None:
        """Until ``stopping``. Closes the socket first, so that no wrapper waits for an answer that does not come."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as self._group:
            server = await loop.create_unix_server(lambda: Connection(self), sock=listening, backlog=LISTEN_QUEUE)
            try:
                await stopping.wait()
            finally:
                server.close()
        for connection in list(self._connections):
            connection.close()

    def admit(self, connection: Connection, uid: int) -> bool:
        """Tell whether this peer may speak."""
        if uid != self._uid:
            _log.error("compile-stranger", category="security", uid=uid)
            return False
        if len(self._connections) >= self._connections_max:
            return False
        self._connections.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """A peer has gone."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._service.left(connection)

    def handle(self, frame: bytes, connection: Connection) -> None:
        """Answer one frame. Raises MalformedFrame."""
        head = frames.read_head(frame)
        if not hmac.compare_digest(head.token, self._token):
            _log.error("compile-token-refused", category="security")
            raise MalformedFrame("a wrong token")
        if head.kind == frames.COMPILE:
            answer = self._ask(head, frame, connection)
            if answer is not None:
                connection.reply(answer)
        elif head.kind == frames.REPORT:
            connection.reply(self._service.report(head, frame))
        elif head.kind == frames.CONTROL:
            self._group.create_task(self._answer_control(frame[frames.HEAD_BYTES :], connection))
        else:
            raise MalformedFrame(f"kind {head.kind}")

    def _ask(self, head: frames.Head, frame: bytes, connection: Connection) -> bytes | None:
        try:
            return self._service.ask(head, frame, connection)
        except MalformedFrame:
            raise
        except Exception as error:  # noqa: BLE001 (the request boundary: the compiler answers instead of us)
            _log.warning("request failed", error=f"{type(error).__name__}: {error}")
            return frames.PASS

    async def _answer_control(self, message: bytes, connection: Connection) -> None:
        try:
            asked = msgspec.json.decode(message, type=dict[str, object])
        except msgspec.MsgspecError:
            connection.close()
            return
        connection.reply(frames.framed(msgspec.json.encode(await self._control(asked))))
