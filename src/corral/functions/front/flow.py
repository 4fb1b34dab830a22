"""A connected socket on the event loop, without a transport: reads at once, writes once a turn.

What one turn of the loop writes leaves as one message; and a socket whose request is over can be kept for another one.
"""

import asyncio
import socket
from collections.abc import Callable


class Flow:
    """``received`` is called with what came, ``broken`` once when the other side is gone; neither after ``close`` or
    ``detach``."""

    __slots__ = (
        "_broken",
        "_loop",
        "_out",
        "_read_bytes",
        "_reading",
        "_received",
        "_scheduled",
        "_socket",
        "_writing",
    )

    def __init__(
        self,
        connection: socket.socket,
        *,
        received: Callable[[bytes], None],
        broken: Callable[[], None],
        read_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = connection
        self._received, self._broken, self._read_bytes = received, broken, read_bytes
        self._out: list[bytes] = []
        self._scheduled = self._writing = False
        self._reading = True
        self._loop.add_reader(connection, self._readable)

    @property
    def drained(self) -> bool:
        """Nothing waits to be sent."""
        return not self._out

    def write(self, data: bytes) -> None:
        """Send it at the end of this turn of the loop, or when the other side takes more."""
        if not self._scheduled and not self._writing:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def read(self, *, on: bool) -> None:
        """Stop reading, or go on."""
        if self._socket is None or on is self._reading:
            return
        self._reading = on
        if on:
            self._loop.add_reader(self._socket, self._readable)
        else:
            self._loop.remove_reader(self._socket)

    def detach(self) -> socket.socket | None:
        """Give the socket away; None when there is none any more."""
        connection, self._socket = self._socket, None
        if connection is not None:
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)
        self._out.clear()
        return connection

    def close(self) -> None:
        connection = self.detach()
        if connection is not None:
            connection.close()

    def _flush(self) -> None:
        self._scheduled = False
        if self._socket is None or not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._end()
            return
        if sent < len(data):
            self._out.append(data[sent:])
        if bool(self._out) is not self._writing:
            self._writing = bool(self._out)
            if self._writing:
                self._loop.add_writer(self._socket, self._flush)
            else:
                self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(self._read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._received(data)
        else:
            self._end()

    def _end(self) -> None:
        self.close()
        self._broken()
