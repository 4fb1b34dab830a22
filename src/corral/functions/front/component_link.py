"""Requests to the HTTP server that hosts a component: a connection for each request, kept for the next one.

The server's process runs other people's programs, so its answers are checked like any: an answer that is not HTTP, or
breaks a limit, ends the connection.
"""

import asyncio
import errno
import socket
from typing import Final

import httptools

from corral.functions.frames import WINDOW, Ended, Outcome
from corral.functions.front.cgi import (
    HOP,
    HOP_BY_HOP,
    OURS,
    AnswerHead,
    Asking,
    Header,
    forwarding_headers,
    has_control_bytes,
)
from corral.functions.front.upstream import Sink
from corral.functions.model import RevisionKey

_KEPT: Final = 64
_READ_BYTES: Final = 64 * 1024
_PEER_S: Final = 10.0  # longer than the peer itself waits
_HEAD_MAX: Final = 64 * 1024


class ComponentLink:
    """The connections to one server at ``HOST:PORT``."""

    first_room = WINDOW

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = (host.strip("[]"), int(port))
        self._idle: list[socket.socket] = []
        self._closing = False
        self._patience_s = 0.0

    def open(
        self,
        sink: Sink,
        *,
        instance: str,
        key: RevisionKey,
        wall_s: float,
        ask: Asking,
        has_body: bool,
        variables: bytes,
    ) -> "ComponentStream":
        kept = self._idle.pop() if self._idle else None
        return ComponentStream(self, sink, kept, self.head(ask, key), wall_s + self._patience_s, has_body=has_body)

    def head(self, ask: Asking, key: RevisionKey) -> tuple[bytes, list[Header]]:
        """The first line and the headers for the server."""
        target = ask.path + (b"?" + ask.query if ask.query else b"")
        return b"%b %b HTTP/1.1\r\n" % (ask.method, target), forwarding_headers(ask)

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


class PeerLink(ComponentLink):
    """The front of another worker, for instances that are there. It is told not to pass the request on again."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._patience_s = _PEER_S

    def head(self, ask: Asking, key: RevisionKey) -> tuple[bytes, list[Header]]:
        names = (key.function.tenant.encode(), key.function.name.encode(), key.revision.encode())
        target = b"/tenants/%b/functions/%b@%b" % names + ask.path + (b"?" + ask.query if ask.query else b"")
        return b"%b %b HTTP/1.1\r\n" % (ask.method, target), [*forwarding_headers(ask), (HOP, b"1")]


class ComponentStream:
    """One request. A kept connection that turns out to be closed is replaced by a new one, once."""

    def __init__(
        self,
        link: ComponentLink,
        sink: Sink,
        kept: socket.socket | None,
        head: tuple[bytes, list[Header]],
        wall_s: float,
        *,
        has_body: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._sink: Sink | None = sink
        self._fresh = kept is None
        self._chunked, written = _written(*head, has_body=has_body)
        self._sent = [written]
        self._out = bytearray(written)
        self._parser = httptools.HttpResponseParser(self)
        self._status_text = b""
        self._headers: list[Header] = []
        self._head_bytes = self._outstanding = 0
        self._complete = self._reading = False
        self._socket: socket.socket | None = None
        self._timer = self._loop.call_later(wall_s, self._too_late)
        self._loop.call_soon(self._begin, kept)

    # -- Stream --

    def send(self, data: bytes, *, last: bool) -> None:
        if self._sink is None:
            return
        if not self._chunked:
            part = data
        else:
            part = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if last else b"")
        self._sent = []  # with a part of the body gone, no second connection may be tried
        self._out += part
        self._want_write()
        self._sink.room(len(data))

    def took(self, count: int) -> None:
        self._outstanding -= count
        if self._outstanding < WINDOW and not self._reading and self._socket is not None:
            self._reading = True
            self._loop.add_reader(self._socket, self._readable)

    def cancel(self) -> None:
        self._sink = None
        self._drop()

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
        if self._sink is not None:
            self._sink.answer(AnswerHead(status, self._status_text, kept, length))

    def on_body(self, data: bytes) -> None:
        self._outstanding += len(data)
        if self._sink is not None:
            self._sink.data(data)

    def on_message_complete(self) -> None:
        self._complete = self._parser.get_status_code() >= 200

    # -- inside --

    def _begin(self, kept: socket.socket | None) -> None:
        if self._sink is None:
            if kept is not None:
                kept.close()
            return
        connection = kept
        if connection is None:
            family = socket.AF_INET6 if ":" in self._link.address[0] else socket.AF_INET
            connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            error = connection.connect_ex(self._link.address)
            if error not in (0, errno.EINPROGRESS):
                connection.close()
                self._lost()
                return
        self._socket = connection
        self._reading = True
        self._loop.add_reader(connection, self._readable)
        self._want_write()

    def _want_write(self) -> None:
        if self._socket is not None and self._out:
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(self._out)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._broken()
            return
        del self._out[:sent]
        if not self._out:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._broken()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lost()
            return
        if self._sink is None:
            return
        if self._complete:
            self._ended()
            return
        self._sink.flush()
        if self._outstanding >= WINDOW and self._socket is not None:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _broken(self) -> None:
        """The connection is gone: one that was kept may have been closed before our request came."""
        if not self._fresh and self._sent and not self._headers:
            self._fresh = True
            self._drop(keep_timer=True)
            self._out = bytearray(b"".join(self._sent))
            self._begin(None)
        else:
            self._lost()

    def _ended(self) -> None:
        sink, self._sink = self._sink, None
        if self._parser.should_keep_alive() and not self._out and self._socket is not None:
            connection, self._socket = self._socket, None
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)
            self._link.give_back(connection)
        self._drop()
        if sink is not None:
            sink.ended(_FINE)

    def _lost(self) -> None:
        sink, self._sink = self._sink, None
        self._drop()
        if sink is not None:
            sink.lost()

    def _too_late(self) -> None:
        sink, self._sink = self._sink, None
        self._drop()
        if sink is not None:
            sink.ended(Ended(Outcome.WALL, 0, 0, 0, 0))

    def _drop(self, *, keep_timer: bool = False) -> None:
        if not keep_timer:
            self._timer.cancel()
        connection, self._socket = self._socket, None
        if connection is not None:
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)
            connection.close()


_FINE: Final = Ended(Outcome.OK, 0, 0, 0, 0)


def _written(first: bytes, headers: list[Header], *, has_body: bool) -> tuple[bool, bytes]:
    """Whether the body is to be chunked, and the head."""
    chunked = has_body and not any(name == b"content-length" for name, _ in headers)
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    return chunked, b"".join((first, *(b"%b: %b\r\n" % header for header in headers), b"\r\n"))
