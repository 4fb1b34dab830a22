"""The host's end of the stream to an agent: frames out, frames in, sorted to their streams.

One ``asyncio.Protocol`` directly on the socket; frames of one turn of the event loop leave in one write.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Self, cast

from corral.kernel.errors import PoolExhausted, SandboxFailed, SandboxLost
from corral.sandboxes.link import protocol
from corral.sandboxes.link.protocol import Frame, FrameDecoder, ProtocolError
from corral.sandboxes.link.setup import Reseed, Setup
from corral.sandboxes.link.streams import Stream

_STREAM_ID_MAX: Final = 0xFFFF_FFFF
_SMALL_WRITE_BYTES: Final = 16_384


class Link:
    """A connection to one agent. Life cycle: ``open`` → many streams → ``close`` (or the far end is lost).

    Attributes:
        setup: what the agent was told.
        notes: what it was asked to try and could not do, one sentence each.
        agent_pid: its process id as it sees itself; 1 in a PID namespace.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.notes: tuple[str, ...] = ()
        self.agent_pid = 0
        self._wire = _Wire(self)
        self._decoder = FrameDecoder()
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._lost: SandboxLost | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending: list[bytes] = []

    @classmethod
    async def open(cls, connection: socket.socket, setup: Setup, *, within_s: float = 10.0) -> Self:
        """Set up the agent at the far end of ``connection`` (a connected stream socket, owned from here on).

        Raises:
            SandboxFailed: the agent refused its setup (in its own words), or speaks another version.
            SandboxLost: the stream ended, or no answer came within ``within_s``.
        Cancellation: the connection is closed.
        """
        link = cls(setup)
        try:
            await link._connect(connection)
            await link._set_up(within_s)
        except BaseException:
            link.close()
            connection.close()
            raise
        return link

    @classmethod
    async def resume(cls, connection: socket.socket, setup: Setup, reseed: Reseed, *, within_s: float = 10.0) -> Self:
        """Meet again an agent that was frozen after its setup; ``setup`` is what it was told then.

        Raises and Cancellation: as for ``open``.
        """
        link = cls(setup)
        try:
            await link._connect(connection)
            await link.reseed(reseed, within_s=within_s)
        except BaseException:
            link.close()
            connection.close()
            raise
        return link

    async def _connect(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        make: Callable[[], _Wire] = lambda: self._wire  # noqa: E731 -- a factory that asyncio asks for
        if connection.family == socket.AF_UNIX:
            await loop.create_unix_connection(make, sock=connection)
        else:
            await loop.create_connection(make, sock=connection)

    async def _set_up(self, within_s: float) -> None:
        frame = await self._ask(protocol.T_SETUP, protocol.encode_setup(self.setup), within_s)
        try:
            if frame.type == protocol.T_SETUP_FAILED:
                raise SandboxFailed(f"the agent refused its setup: {protocol.decode_sentence(frame.payload)}")
            if frame.type != protocol.T_READY:
                raise SandboxFailed(f"the agent answered its setup with a frame of type {frame.type}")
            ready = protocol.decode_ready(frame.payload)
        except ProtocolError as error:
            raise SandboxFailed(f"the agent answered its setup with {error}") from error
        if ready.version != protocol.PROTOCOL_VERSION:
            raise SandboxFailed(
                f"the agent speaks protocol {ready.version}, this program {protocol.PROTOCOL_VERSION}",
                cure="build the agent again with `make native`",
            )
        self.notes = ready.notes
        self.agent_pid = ready.pid

    @property
    def lost(self) -> SandboxLost | None:
        """Why the link has ended, or None while it is up."""
        return self._lost

    @property
    def last_stream(self) -> int:
        """The number of the stream that was opened last."""
        return self._last_id

    async def wait_lost(self) -> None:
        """Return when the link has ended for any reason. Cancellation: safe."""
        await asyncio.wait({self._closed})

    async def ping(self, *, within_s: float = 5.0) -> None:
        """One round trip. Raises SandboxLost when no answer came; the link is closed then."""
        await self._ask(protocol.T_PING, b"", within_s)

    async def reseed(self, reseed: Reseed, *, within_s: float = 10.0) -> None:
        """Give the machine its own time, chance and names; what did not work becomes ``notes``. Raises SandboxLost."""
        frame = await self._ask(protocol.T_RESEED, protocol.encode_reseed(reseed), within_s)
        if frame.type != protocol.T_RESEEDED:
            raise self.broken(ProtocolError(f"a frame of type {frame.type} as the answer to RESEED"))
        try:
            self.notes = (*self.notes, *protocol.decode_sentence(frame.payload).splitlines())
        except ProtocolError as error:
            raise self.broken(error) from error

    async def reset(self, *, within_s: float = 10.0) -> tuple[bool, str]:
        """Kill leftovers, empty the writable folders. (clean, what was left). Raises SandboxLost."""
        frame = await self._ask(protocol.T_RESET, b"", within_s)
        try:
            return protocol.decode_reset_done(frame.payload)
        except ProtocolError as error:
            raise self.broken(error) from error

    def open_stream(self, kind: int, payload: bytes) -> Stream:
        """Begin an exec or a file operation with its first frame.

        Raises:
            SandboxLost: the link has ended.
            PoolExhausted: as many streams are open as the protocol allows.
        """
        if len(self._streams) >= protocol.STREAMS_MAX:
            raise PoolExhausted(f"{protocol.STREAMS_MAX} operations are running in this sandbox already")
        self._last_id = self._last_id % _STREAM_ID_MAX + 1
        while self._last_id in self._streams:
            self._last_id = self._last_id % _STREAM_ID_MAX + 1
        stream = Stream(self, self._last_id)
        self.send(kind, stream.id, payload)
        self._streams[stream.id] = stream
        return stream

    def send(self, kind: int, stream: int, payload: bytes = b"") -> None:
        """Queue one frame; it leaves at the end of this turn of the loop. Raises SandboxLost."""
        if self._lost is not None:
            raise self._lost
        frame = protocol.encode_frame(kind, stream, payload)
        if self._pending:
            self._pending.append(frame)
        elif len(frame) < _SMALL_WRITE_BYTES and kind != protocol.T_EXEC:
            self._pending.append(frame)
            asyncio.get_running_loop().call_soon(self._flush)
        else:
            self._wire.write(frame)

    def _flush(self) -> None:
        if self._pending and self._lost is None:
            self._wire.write(b"".join(self._pending))
        self._pending.clear()

    def forget(self, stream: int) -> None:
        """The stream has seen its last frame; later ones are dropped."""
        self._streams.pop(stream, None)

    def close(self) -> None:
        """End the link; the agent kills everything in the sandbox. Idempotent."""
        self.fail("the link was closed")

    async def _ask(self, kind: int, payload: bytes, within_s: float) -> Frame:
        stream = self.open_stream(kind, payload)
        try:
            async with asyncio.timeout(within_s):
                return await stream.wait_frame()
        except TimeoutError as error:
            raise self.fail(f"the agent did not answer within {within_s:g} s") from error
        finally:
            self.forget(stream.id)

    def broken(self, error: ProtocolError) -> SandboxLost:
        """End the link because the agent sent what no honest agent sends."""
        return self.fail(f"the agent broke the protocol: {error}")

    def on_data(self, data: bytes) -> None:
        """Bytes from the agent."""
        streams = self._streams
        try:
            for frame in self._decoder.feed(data):
                if stream := streams.get(frame.stream):
                    stream.on_frame(frame)
        except ProtocolError as error:
            self.broken(error)

    def on_end(self, error: Exception | None) -> None:
        """The stream to the agent is gone."""
        self.fail(f"the stream to the agent ended: {error}" if error else "the sandbox ended")

    def fail(self, reason: str) -> SandboxLost:
        """End the link for this reason; gives the error that all its users get. Idempotent, the first reason wins."""
        if self._lost is not None:
            return self._lost
        self._lost = SandboxLost(reason)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(self._lost)
        self._pending.clear()
        self._wire.close()
        if not self._closed.done():
            self._closed.set_result(None)
        return self._lost


class _Wire(asyncio.Protocol):
    """The socket's callbacks. Credit bounds what is in flight, so no pause of reading is needed; writes are bounded
    by the credit that the agent gave, and by what its callers may open."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        self._link.on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.on_end(exc)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
