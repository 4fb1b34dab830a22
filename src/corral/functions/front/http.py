"""One connection of a client: HTTP/1.1 as llhttp reads it (strictly), with the front's limits around it.

What comes is parsed one request at a time. Requests that a client sends ahead wait their turn, and what is behind them
waits unparsed, and so does what is left when its tenant's turn is over.
"""

import asyncio
import socket
import time
from collections import deque
from typing import Final, Protocol

import httptools

from corral.functions.front.answers import new_request_id, problem, reason_of
from corral.functions.front.cgi import AnswerHead, Asking, Header, Said, said
from corral.functions.front.exchange import Desk, Exchange
from corral.functions.front.flow import Flow
from corral.functions.front.lanes import NOBODY, Lanes
from corral.functions.front.limits import FrontConfig

_LINGER_S: Final = 1.0
_REFUSED: Final = (400, "bad-request", "the request is no HTTP/1.1 that could be understood")
_TOO_LARGE: Final = (431, "head-too-large", "the request's line and headers are larger than this front takes")
_SLOW: Final = (408, "request-timeout", "the head of the request took too long")


class Overseer(Desk, Protocol):
    """Who routes requests and counts connections; see front.py."""

    config: FrontConfig
    lanes: Lanes
    port: int

    def opened(self, connection: "Connection") -> bool:
        """False when there are too many."""
        ...

    def closed(self, connection: "Connection") -> None: ...


class Connection:
    """See the module. ``overseer`` hears of its beginning and end, and calls ``look`` now and then."""

    def __init__(self, connection: socket.socket, peer: tuple[str, int], overseer: Overseer) -> None:
        self._overseer, self._config = overseer, overseer.config
        self._loop = asyncio.get_running_loop()
        self._peer = peer
        self._parser = httptools.HttpRequestParser(self)
        self._unparsed = b""
        self._queue: deque[Exchange] = deque()  # the first one is being answered, unless the client reads too slowly
        self._answering: Exchange | None = None
        self._reading: Exchange | None = None  # whose body comes in
        self._in_head = False
        self._head_bytes = 0
        self._url = b""
        self._headers: list[Header] = []
        self._said: Said | None = None  # of the request before
        self._since_s = self._loop.time()
        self._closing = self._held = self._slow = self._parsing = self._waits = False
        self._nobody = overseer.lanes.of(NOBODY)
        self._flow = Flow(connection, self._nobody, received=self._received, broken=self._broken, full=self._full)
        if not overseer.opened(self):
            self._refuse(503, "too-many-connections", "this front has as many connections as it takes; try again")

    # -- the flow's side --

    def _received(self, data: bytes) -> None:
        if self._closing:
            return
        if not self._in_head and self._reading is None:
            self._since_s = self._loop.time()
        self._unparsed += data
        self._parse()

    def _broken(self) -> None:
        self._closing = True
        self._overseer.closed(self)
        while self._queue:
            self._queue.popleft().gone()

    def _full(self, on: bool) -> None:
        self._slow = on
        if self._answering is not None:
            self._answering.slow(on=on)
        elif self._queue and not on:
            self._loop.call_soon(self._next)
        self._go_on()

    # -- parsing --

    def _parse(self) -> None:
        """As many requests as may wait here, and as there is a turn for."""
        self._parsing = True
        while self._unparsed and self._may_parse():
            self._feed(self._next_piece())
            if self._flow.lane.over:
                break
        self._parsing = False
        self._go_on()

    def _parse_on(self) -> None:
        self._waits = False
        self._parse()

    def _go_on(self) -> None:
        """Parse what is here as soon as that may be, and read only when nothing is."""
        if self._parsing or self._waits:
            return
        may = self._may_parse()
        self._flow.read(on=self._closing or (may and not self._unparsed))
        if may and self._unparsed:
            self._waits = True
            self._flow.lane.put_off(self._parse_on)

    def _may_parse(self) -> bool:
        return not (self._closing or self._held or self._slow or len(self._queue) > self._config.pipelined)

    def _next_piece(self) -> bytes:
        """To the end of a request's head, so that no more than one request comes of it."""
        end = self._unparsed.find(b"\r\n\r\n") + 4
        if end in (3, len(self._unparsed)):
            piece, self._unparsed = self._unparsed, b""
        else:
            piece, self._unparsed = self._unparsed[:end], self._unparsed[end:]
        return piece

    def _feed(self, piece: bytes) -> None:
        if self._reading is None:
            self._in_head = True
            self._head_bytes += len(piece)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._fail(*_REFUSED)  # after a request that is answered as if it had not asked for it
        except httptools.HttpParserError:
            self._fail(*_REFUSED)
        if self._in_head and self._head_bytes > self._config.head_bytes:
            self._fail(*_TOO_LARGE)

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
        if len(self._queue) == 1 and not self._slow:
            self._admit(exchange)

    def on_body(self, data: bytes) -> None:
        if self._reading is not None:
            self._reading.body(data)

    def on_message_complete(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.body_ended()

    # -- the exchange's side (Client) --

    def write(self, data: bytes) -> None:
        if self._flow.open:
            self._flow.write(data)

    def hold(self, *, on: bool) -> None:
        self._held = on
        self._go_on()

    def finished(self, *, keep: bool) -> None:
        self._queue.popleft()
        self._answering = None
        self._since_s = self._loop.time()
        self._flow.flush()
        if not keep or self._closing:
            self._close()
        elif self._queue:
            self._loop.call_soon(self._next)
        else:
            self._go_on()

    def abort(self) -> None:
        self._closing = True
        self._flow.close()
        self._loop.call_soon(self._broken)

    # -- the overseer's side --

    def look(self, now_s: float, *, draining: bool) -> None:
        """Close what is idle or slow."""
        spent_s = now_s - self._since_s
        if self._closing:
            if spent_s > self._config.idle_s:  # it does not read what it asked for
                self.abort()
        elif self._queue:
            return
        elif self._in_head and spent_s > self._config.head_s:
            self._fail(*_SLOW)
        elif not self._in_head and (draining or spent_s > self._config.idle_s):
            self._close()

    def _next(self) -> None:
        """Answer the first in the queue. Not from within the end of another: a client that sends ahead must not make
        us recurse."""
        if self._queue and self._answering is None and not self._slow and not self._closing:
            self._admit(self._queue[0])
        self._go_on()

    def _admit(self, exchange: Exchange) -> None:
        self._answering = exchange
        self._overseer.admit(exchange)
        self._flow.move(exchange.lane or self._nobody)

    def _exchange(self) -> Exchange | None:
        version = self._parser.get_http_version().encode()
        known = self._said
        if known is None or known.headers != self._headers:
            known = self._said = said(self._headers, peer=self._peer, port=self._overseer.port, version=version)
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
        return Exchange(self._overseer, self, ask, keep=self._parser.should_keep_alive())

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
        self._close()

    def _close(self) -> None:
        """Close; but a client that is still sending must be able to read what it was answered: it is heard a while."""
        self._closing, self._unparsed = True, b""
        if self._reading is None or not self._flow.open:
            self._flow.finish()
            return
        self._reading = None
        self._flow.write_end()
        self._flow.read(on=True)
        self._loop.call_later(_LINGER_S, self._flow.finish)


def _bytes_of(head: AnswerHead, body: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, reason_of(head.status))]
    lines += [b"%b: %b\r\n" % header for header in head.headers]
    return b"".join((*lines, b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body), body))
