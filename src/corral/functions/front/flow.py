"""A connected socket in its tenant's lane, without a transport: it reads and sends a little at a time. A socket whose
request is over can be kept for another one.
"""

import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from corral.functions.front.lanes import Lane

READ_BYTES: Final = 16 * 1024
"""Read at once; the rest of the lane waits for what is made of it."""
_SEND_BYTES: Final = 64 * 1024
_FULL: Final = 256 * 1024
_FREE: Final = 64 * 1024
"""Bytes that wait to be sent: with more than the first the writer is to stop, with less than the second to go on."""
_BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
_IN: Final = select.EPOLLIN | _BROKEN
_OUT: Final = select.EPOLLOUT | _BROKEN


def _whatever(_: bool) -> None:
    """For writers that are bounded otherwise."""


class Flow:
    """``received`` is called with what came, ``broken`` once when the connection is gone, or is finished; neither after
    ``close`` or ``detach``. ``full`` hears when the other side takes too slowly, and when it has caught up."""

    __slots__ = (
        "_broken",
        "_events",
        "_full",
        "_is_full",
        "_lane",
        "_last",
        "_out",
        "_out_bytes",
        "_reading",
        "_received",
        "_scheduled",
        "_socket",
        "_writing",
    )

    def __init__(
        self,
        connection: socket.socket,
        lane: Lane,
        *,
        received: Callable[[bytes], None],
        broken: Callable[[], None],
        full: Callable[[bool], None] = _whatever,
    ) -> None:
        self._socket: socket.socket | None = connection
        self._lane = lane
        self._received, self._broken, self._full = received, broken, full
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._last: Callable[[], None] | None = None  # to be done when all is sent
        self._scheduled = self._writing = self._is_full = False
        self._reading = True
        self._events = 0  # that the lane watches for
        lane.enter()
        self._watch()

    @property
    def drained(self) -> bool:
        """Nothing waits to be sent."""
        return not self._out

    @property
    def open(self) -> bool:
        """Neither closed nor about to be."""
        return self._socket is not None and self._last is None

    @property
    def lane(self) -> Lane:
        return self._lane

    def move(self, lane: Lane) -> None:
        """It belongs to another tenant now."""
        if lane is self._lane:
            return
        if self._socket is not None:
            self._lane.watch(self._socket.fileno(), self, 0)
            self._lane.leave()
            lane.enter()
            lane.watch(self._socket.fileno(), self, self._events)
        self._lane = lane

    def write(self, data: bytes) -> None:
        """Send it at the end of the lane's turn, or when the other side takes more."""
        if not self._scheduled and not self._writing:
            self._scheduled = True
            self._lane.wrote(self)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > _FULL and not self._is_full:
            self._is_full = True
            self._full(True)

    def read(self, *, on: bool) -> None:
        """Stop reading, or go on."""
        if on is not self._reading:
            self._reading = on
            self._watch()

    def detach(self) -> socket.socket | None:
        """Give the socket away; None when there is none any more."""
        connection, self._socket = self._socket, None
        if connection is not None:
            self._lane.watch(connection.fileno(), self, 0)
            self._lane.leave()
        return connection

    def close(self) -> None:
        """Now, whatever waits to be sent."""
        connection = self.detach()
        if connection is not None:
            connection.close()

    def finish(self) -> None:
        """Close when everything is sent."""
        self._at_last(self._end)

    def write_end(self) -> None:
        """Tell the other side, when everything is sent, that nothing follows; go on reading."""
        self._at_last(self._shut_down)

    # -- the lane's side --

    def happened(self, events: int) -> None:
        """It can be read or written."""
        if events & _OUT and self._writing:
            self._send()
        if events & _IN and self._reading:
            self._read()

    def flush(self) -> None:
        """Send what was written."""
        self._scheduled = False
        if self._out and not self._writing:
            self._send()

    # -- inside --

    def _at_last(self, action: Callable[[], None]) -> None:
        self._last = action
        if not self._out:
            action()

    def _shut_down(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._end()

    def _send(self) -> None:
        """As much as the other side takes of one piece."""
        if self._socket is None or not self._out:
            return
        data = self._next_piece()
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._end()
            return
        if sent < len(data):
            self._out.appendleft(data[sent:])
        self._out_bytes -= sent
        if bool(self._out) is not self._writing:
            self._writing = bool(self._out)
            self._watch()
        if self._is_full and self._out_bytes < _FREE:
            self._is_full = False
            self._full(False)
        if not self._out and self._last is not None:
            self._last()

    def _next_piece(self) -> bytes:
        first = self._out.popleft()
        size, parts = len(first), [first]
        while self._out and size + len(self._out[0]) <= _SEND_BYTES:
            size += len(self._out[0])
            parts.append(self._out.popleft())
        return b"".join(parts)

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._received(data)
        else:
            self._end()

    def _watch(self) -> None:
        """Be told of what can be done with it, and is wanted."""
        wanted = (select.EPOLLIN if self._reading else 0) | (select.EPOLLOUT if self._writing else 0)
        if self._socket is not None and wanted != self._events:
            self._events = wanted
            self._lane.watch(self._socket.fileno(), self, wanted)

    def _end(self) -> None:
        if self._socket is not None:
            self.close()
            self._broken()
