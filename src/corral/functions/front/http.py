"""One connection of a client: HTTP/1.1 as llhttp reads it (strictly), with the front's limits around it.

Requests that a client sends ahead wait their turn; while one waits, nothing more is read than one piece.
"""

import asyncio
import time
from collections import deque
from typing import Final, Protocol, cast

import httptools

from corral.functions.front.answers import new_request_id, problem, reason_of
from corral.functions.front.cgi import AnswerHead, Asking, Header, Said, said
from corral.functions.front.exchange import Desk, Exchange
from corral.functions.front.limits import FrontConfig

_LINGER_S: Final = 1.0
_HIGH_WATER: Final = 256 * 1024
_REFUSED: Final = (400, "bad-request", "the request is no HTTP/1.1 that could be understood")
_TOO_LARGE: Final = (431, "head-too-large", "the request's line and headers are larger than this front takes")
_SLOW: Final = (408, "request-timeout", "the head of the request took too long")


class Connection(asyncio.Protocol):
    """See the module. ``overseer`` hears of its beginning and end, and calls ``look`` now and then."""

    def __init__(self, desk: Desk, config: FrontConfig, overseer: "Overseer", port: int) -> None:
        self._desk, self._config, self._overseer, self._port = desk, config, overseer, port
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._peer = ("", 0)
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()  # the first one is being answered
        self._reading: Exchange | None = None  # whose body comes in
        self._in_head = False
        self._head_bytes = 0
        self._url = b""
        self._headers: list[Header] = []
        self._said: Said | None = None  # of the request before
        self._since_s = self._loop.time()
        self._closing = False
        self._held_body = self._held_queue = self._paused = False

    # -- asyncio --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # what uvloop gives is none by its type
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        peer = transport.get_extra_info("peername")
        self._peer = (str(peer[0]), int(peer[1])) if peer else ("", 0)
        if not self._overseer.opened(self):
            self._refuse(503, "too-many-connections", "this front has as many connections as it takes; try again")

    def connection_lost(self, _: Exception | None) -> None:
        self._closing = True
        self._overseer.closed(self)
        while self._queue:
            self._queue.popleft().gone()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        idle = not self._in_head and self._reading is None
        if idle:
            self._since_s = self._loop.time()
        if idle or self._in_head:
            self._head_bytes += len(data)
        self._in_head = self._in_head or self._reading is None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(*_REFUSED)  # after a request that is answered as if it had not asked for it
        except httptools.HttpParserError:
            self._fail(*_REFUSED)
        if self._in_head and self._head_bytes > self._config.head_bytes:
            self._fail(*_TOO_LARGE)

    def pause_writing(self) -> None:
        if self._queue:
            self._queue[0].slow(on=True)

    def resume_writing(self) -> None:
        if self._queue:
            self._queue[0].slow(on=False)

    # -- llhttp --

    def on_message_begin(self) -> None:
        self._in_head, self._url, self._headers = True, b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._closing:
            return
        size = len(self._url) + sum(len(name) + len(value) for name, value in self._headers)
        if len(self._headers) > self._config.headers or size > self._config.head_bytes:
            self._fail(*_TOO_LARGE)
            return
        exchange = self._exchange()
        if exchange is None:
            return
        self._reading = exchange
        self._queue.append(exchange)
        self._hold_queue()
        if len(self._queue) == 1:
            self._desk.admit(exchange)

    def on_body(self, data: bytes) -> None:
        if self._reading is not None:
            self._reading.body(data)

    def on_message_complete(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.body_ended()

    # -- the exchange's side (Client) --

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def hold(self, *, on: bool) -> None:
        self._held_body = on
        self._pause()

    def finished(self, *, keep: bool) -> None:
        self._queue.popleft()
        self._since_s = self._loop.time()
        if not keep or self._closing:
            self._close()
            return
        self._hold_queue()
        if self._queue:  # not from within: a client that sends ahead must not make us recurse
            self._loop.call_soon(self._next, self._queue[0])

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    # -- the overseer's side --

    def look(self, now_s: float, *, draining: bool) -> None:
        """Close what is idle or slow."""
        spent_s = now_s - self._since_s
        if self._queue or self._closing:
            return
        if self._in_head and self._head_bytes and spent_s > self._config.head_s:
            self._fail(*_SLOW)
        elif not self._in_head and (draining or spent_s > self._config.idle_s):
            self._close()

    def _next(self, exchange: Exchange) -> None:
        if self._queue and self._queue[0] is exchange and not self._closing:
            self._desk.admit(exchange)

    def _exchange(self) -> Exchange | None:
        version = self._parser.get_http_version().encode()
        known = self._said
        if known is None or known.headers != self._headers:
            known = self._said = said(self._headers, peer=self._peer, port=self._port, version=version)
        if known is None or not self._url.startswith(b"/") or b"#" in self._url:
            self._fail(*_REFUSED)
            return None
        path, _, query = self._url.partition(b"?")
        request_id = known.request_id or new_request_id()
        method = self._parser.get_method()
        came_s = time.perf_counter() if known.traced else 0.0
        ask = Asking(
            *(method, self._url, version, known, query, b"", path, self._peer[0], request_id),
            traceparent=known.traceparent,
            came_s=came_s,
        )
        return Exchange(self._desk, self, ask, keep=self._parser.should_keep_alive())

    def _hold_queue(self) -> None:
        self._held_queue = len(self._queue) > self._config.pipelined
        self._pause()

    def _pause(self) -> None:
        wanted = self._held_body or self._held_queue
        if wanted is self._paused or self._transport.is_closing():
            return
        self._paused = wanted
        if wanted:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _fail(self, status: int, code: str, text: str) -> None:
        """Answer once, when nothing else is on its way, and close."""
        if self._closing:
            return
        while len(self._queue) > 1:
            self._queue.pop().gone()
        if self._queue:
            exchange = self._queue[0]
            self._closing = True
            if exchange is self._reading:
                exchange.refuse(status, code, text)
            return
        self._refuse(status, code, text)

    def _refuse(self, status: int, code: str, text: str) -> None:
        head, body = problem(status, code, text, new_request_id())
        self.write(_bytes_of(head, body))
        self._closing = True
        self._close()

    def _close(self) -> None:
        """Close; but a client that is still sending must be able to read what it was answered: it is heard a while."""
        self._closing = True
        if self._reading is None or self._transport.is_closing():
            self._transport.close()
            return
        self._reading = None
        self._held_body = self._held_queue = False
        self._pause()
        self._transport.write_eof()
        self._loop.call_later(_LINGER_S, self._transport.close)


class Overseer(Protocol):
    """Who counts connections; see front.py."""

    def opened(self, connection: Connection) -> bool:
        """False when there are too many."""
        ...

    def closed(self, connection: Connection) -> None: ...


def _bytes_of(head: AnswerHead, body: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, reason_of(head.status))]
    lines += [b"%b: %b\r\n" % header for header in head.headers]
    return b"".join((*lines, b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body), body))
