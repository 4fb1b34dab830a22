"""Requests to an HTTP server that answers for instances: a connection for each request, kept for the next one.

The server's process may run other people's programs, so its answers are checked like any: an answer that is not HTTP,
or breaks a limit, ends the connection.
"""

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import httptools

from corral.functions.frames import WINDOW, Ended, Outcome
from corral.functions.front.cgi import HOP_BY_HOP, OURS, AnswerHead, Asking, Header, has_control_bytes
from corral.functions.front.flow import Flow
from corral.functions.front.lanes import Lane, Lanes
from corral.functions.front.upstream import Sink
from corral.functions.model import Limits, RevisionKey

_KEPT: Final = 64
_HEAD_MAX: Final = 64 * 1024
OWN_PAGE_MAX: Final = 512
"""Bytes: no page of a server's own has as many, so what is longer is the program's."""

Connected = Callable[[socket.socket | None], None]
"""Hears of a connection that was asked for; None when there can be none."""


class HttpLink(ABC):
    """The connections to one server. ``patience_s`` is what it may take longer than the program that it answers for."""

    first_room = WINDOW
    patience_s = 0.0

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self._idle: list[socket.socket] = []
        self._closing = False

    @abstractmethod
    def connect(self, then: Connected) -> None:
        """Make a connection; ``then`` hears of it, now or later, once."""

    @abstractmethod
    def head(self, ask: Asking, key: RevisionKey) -> tuple[bytes, list[Header]]:
        """The first line and the headers for the server."""

    def open(
        self, sink: Sink, *, instance: str, key: RevisionKey, limits: Limits, ask: Asking, has_body: bool
    ) -> "HttpStream":
        kept = self._idle.pop() if self._idle else None
        lane = self.lanes.of(key.function.tenant)
        return HttpStream(self, sink, kept, self.head(ask, key), limits, lane, has_body=has_body)

    def close(self) -> None:
        self._closing = True
        while self._idle:
            self._idle.pop().close()

    def give_back(self, connection: socket.socket) -> None:
        """Keep it for the next request."""
        if self._closing or len(self._idle) >= _KEPT:
            connection.close()
        else:
            self._idle.append(connection)

    def answered_itself(self, status: int, body: bytes) -> bool:
        """Whether this answer is the server's own, because the program gave none."""
        return False

    def over(self, stream: "HttpStream", end: Ended | None) -> Ended | None:
        """A stream has ended, or was lost (None), or canceled; what its sink is to hear of it."""
        return end


class HttpStream:
    """One request. A kept connection that turns out to be closed is replaced by a new one, once."""

    def __init__(
        self,
        link: HttpLink,
        sink: Sink,
        kept: socket.socket | None,
        head: tuple[bytes, list[Header]],
        limits: Limits,
        lane: Lane,
        *,
        has_body: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link, self._lane = link, lane
        self._sink: Sink | None = sink
        self._fresh = kept is None
        self._chunked, written = _written(*head, has_body=has_body)
        self._unsent = [written]  # for the first connection, or the second
        self._replay: bytes | None = written
        self._parser = httptools.HttpResponseParser(self)
        self._status_text = b""
        self._headers: list[Header] = []
        self._left = limits.response_bytes
        self._head_bytes = self._outstanding = self._owed = 0
        self._slow = False
        self._status, self._begun = 0, b""  # of the answer, and its body while that may be the server's own
        self._complete = False
        self._flow: Flow | None = None
        self._timer = self._loop.call_later(limits.wall_s + link.patience_s, self._too_late)
        if kept is None:
            self._loop.call_soon(self._connect)
        else:
            self._begin(kept)

    # -- Stream --

    def send(self, data: bytes, *, last: bool) -> None:
        if self._sink is None:
            return
        if not self._chunked:
            part = data
        else:
            part = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if last else b"")
        self._replay = None  # with a part of the body gone, no second connection may be tried
        self._owed += len(data)
        if self._flow is None:
            self._unsent.append(part)
        else:
            self._flow.write(part)
            self._give_room()

    def took(self, count: int) -> None:
        self._outstanding -= count
        if self._outstanding < WINDOW and self._flow is not None:
            self._flow.read(on=True)

    def cancel(self) -> None:
        if self._sink is not None:
            self._finish(Ended(Outcome.CANCELED, 0, 0, 0, 0), told=False)

    def end(self, end: Ended | None) -> None:
        """End it now, as the link decides; None: it was lost."""
        self._finish(end)

    # -- llhttp --

    def on_status(self, status: bytes) -> None:
        self._status_text += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_MAX or has_control_bytes(value):
            raise ValueError("head")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []
            return
        length = next((int(value) for name, value in self._headers if name.lower() == b"content-length"), None)
        kept = tuple(
            header
            for header in self._headers
            if (name := header[0].lower()) not in HOP_BY_HOP and name not in OURS and name != b"content-length"
        )
        self._status = status
        if self._sink is not None:
            self._sink.answer(AnswerHead(status, self._status_text, kept, length))

    def on_body(self, data: bytes) -> None:
        self._left -= len(data)
        self._outstanding += len(data)
        if len(self._begun) < OWN_PAGE_MAX:
            self._begun += data[:OWN_PAGE_MAX]
        if self._sink is not None and self._left >= 0:
            self._sink.data(data)

    def on_message_complete(self) -> None:
        self._complete = self._parser.get_status_code() >= 200

    # -- inside --

    def _connect(self) -> None:
        if self._sink is not None:
            self._link.connect(self._connected)

    def _connected(self, connection: socket.socket | None) -> None:
        if connection is None:
            self._finish(None)
        elif self._sink is None:
            connection.close()
        else:
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        self._flow = Flow(connection, self._lane, received=self._received, broken=self._broken, full=self._full)
        unsent, self._unsent = self._unsent, []
        for part in unsent:
            self._flow.write(part)
        self._give_room()

    def _full(self, on: bool) -> None:
        self._slow = on
        self._give_room()

    def _give_room(self) -> None:
        """As much as was sent, while the server takes it."""
        if self._owed and not self._slow and self._sink is not None:
            owed, self._owed = self._owed, 0
            self._sink.room(owed)

    def _received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._finish(None)
            return
        if self._sink is None:
            return
        if self._left < 0:
            self._finish(Ended(Outcome.OUTPUT, 0, 0, 0, 0))
        elif self._complete:
            self._keep()
            own = self._link.answered_itself(self._status, self._begun)
            self._finish(Ended(Outcome.TRAP if own else Outcome.OK, 0, 0, 0, 0))
        elif self._status != 500 or len(self._begun) >= OWN_PAGE_MAX:
            self._sink.flush()
            if self._outstanding >= WINDOW and self._flow is not None:
                self._flow.read(on=False)

    def _broken(self) -> None:
        """The connection is gone: one that was kept may have been closed before our request came."""
        self._flow = None
        if not self._fresh and self._replay is not None and not self._headers:
            self._fresh = True
            self._unsent = [self._replay]
            self._connect()
        else:
            self._finish(None)

    def _keep(self) -> None:
        if self._flow is not None and self._parser.should_keep_alive() and self._flow.drained:
            connection = self._flow.detach()
            if connection is not None:
                self._link.give_back(connection)

    def _too_late(self) -> None:
        self._finish(Ended(Outcome.WALL, 0, 0, 0, 0))

    def _finish(self, end: Ended | None, *, told: bool = True) -> None:
        """The one way out: with an end, or lost."""
        sink, self._sink = self._sink, None
        if sink is None:
            return
        self._timer.cancel()
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()
        end = self._link.over(self, end)
        if not told:
            return
        if end is None:
            sink.lost()
        else:
            sink.ended(end)


def _written(first: bytes, headers: list[Header], *, has_body: bool) -> tuple[bool, bytes]:
    """Whether the body is to be chunked, and the head."""
    chunked = has_body and not any(name == b"content-length" for name, _ in headers)
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    return chunked, b"".join((first, *(b"%b: %b\r\n" % header for header in headers), b"\r\n"))
