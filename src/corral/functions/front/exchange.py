"""One request and its answer, from the head to the last byte: body towards the instance, answer towards the client,
each as fast as the slower side takes it, and one more try where nothing is lost by it."""

from collections.abc import Sequence
from typing import Final, Protocol

from corral.functions.frames import NOT_BEGUN, Ended, Outcome
from corral.functions.front.answers import of_outcome, problem, reason_of
from corral.functions.front.cgi import AnswerHead, Asking
from corral.functions.front.lanes import Lane
from corral.functions.front.tracing import Tracing
from corral.functions.front.upstream import Stream, Upstream
from corral.functions.routing import FunctionRoute, RevisionRoute

_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_NO_BODY: Final = frozenset((204, 304))
_PIECE: Final = 64 * 1024


class Client(Protocol):
    """The connection that the request came on."""

    def write(self, data: bytes) -> None: ...

    def hold(self, *, on: bool) -> None:
        """Stop reading from it, or go on."""
        ...

    def finished(self, *, keep: bool) -> None:
        """The answer is written; ``keep`` the connection for the next request, or close it."""
        ...

    def abort(self) -> None:
        """Cut it off, so that a half answer is not taken for a whole one."""
        ...


class Desk(Protocol):
    """Who routes and counts."""

    replay_bytes: int

    def admit(self, exchange: "Exchange") -> None: ...

    def left(self, exchange: "Exchange", *, again: bool) -> None: ...


class Exchange:
    """See the module. The desk calls ``run`` or ``refuse``; the stream calls the methods of ``Sink``."""

    __slots__ = (
        "_body",
        "_body_done",
        "_chunked",
        "_client",
        "_desk",
        "_expects",
        "_head",
        "_held",
        "_keep",
        "_last_sent",
        "_parts",
        "_received",
        "_replay",
        "_room",
        "_slow",
        "_started",
        "_stream",
        "_uncredited",
        "_unsent",
        "_written",
        "ask",
        "cold",
        "done",
        "instance",
        "lane",
        "length",
        "roll",
        "route",
        "tracing",
        "tried",
        "waited_s",
    )

    def __init__(self, desk: Desk, client: Client, ask: Asking, *, keep: bool) -> None:
        self.ask = ask
        self.length = length = ask.said.length  # of the body; None when it is chunked
        self.route: tuple[FunctionRoute, RevisionRoute] | None = None
        self.instance = ""
        self.tried: set[str] = set()
        self.roll: float | None = None
        self.waited_s = 0.0
        self.cold = False
        self.done = False
        self.lane: Lane | None = None
        self.tracing: Tracing | None = None
        self._desk, self._client = desk, client
        self._expects, self._keep = ask.said.expects, keep
        self._stream: Stream | None = None
        self._body: list[bytes] = []  # not sent yet
        self._replay: list[bytes] | None = []  # sent, and kept for another try; None: too much
        self._received = self._unsent = self._room = 0
        self._body_done = length == 0
        self._held = self._slow = False
        self._head: AnswerHead | None = None
        self._parts: list[bytes] = []
        self._started = self._chunked = False
        self._written = self._uncredited = 0
        self._last_sent = False

    # -- the client's side --

    @property
    def has_body(self) -> bool:
        return self.length != 0

    def body(self, data: bytes) -> None:
        """A part of the request's body came."""
        if self.done:
            return
        self._received += len(data)
        if self.route is not None and self._received > self.route[1].limits.body_bytes:
            self._too_large()
            return
        self._body.append(data)
        self._unsent += len(data)
        self._pump()

    def body_ended(self) -> None:
        self._body_done = True
        if not self.done:
            self._pump()

    def gone(self) -> None:
        """The client went away."""
        if not self.done:
            self.done = True
            self._traced(0)
            self._leave()

    def slow(self, *, on: bool) -> None:
        """The client takes no more at the moment, or takes again."""
        self._slow = on
        if not on:
            self._credit()

    # -- the desk's side --

    def refuse(self, status: int, code: str, text: str, *, retry_after_s: int = 0) -> None:
        """Answer with an error of our own, unless an answer has begun."""
        if self.done:
            return
        if self._started:
            self._cut()
            return
        head, body = problem(status, code, text, self.ask.request_id, retry_after_s=retry_after_s)
        self._leave()
        self._answer_whole(head, [body])

    def run(self, upstream: Upstream, instance: str) -> None:
        """Send it to this instance."""
        assert self.route is not None
        limits = self.route[1].limits
        if (self.length is not None and self.length > limits.body_bytes) or self._received > limits.body_bytes:
            self.instance = instance
            self._too_large()
            return
        self.instance = instance
        if self._expects and not self._received:
            self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._expects = False
        if self.tracing is not None:
            self.tracing.began(instance)
        self._room = upstream.first_room
        self._stream = upstream.open(
            self,
            instance=instance,
            key=self.route[1].key,
            limits=limits,
            ask=self.ask,
            has_body=self.has_body,
        )
        self._pump()

    # -- the instance's side (Sink) --

    def answer(self, head: AnswerHead) -> None:
        self._head = head

    def data(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> None:
        if self._head is not None and self._parts and not self.done:
            self._write_parts()

    def ended(self, end: Ended, trouble: str = "") -> None:
        if self.done:
            return
        if end.outcome in NOT_BEGUN and self._can_replay():
            self._again()
            return
        if end.outcome is not Outcome.OK or trouble or self._head is None:
            self.refuse(*of_outcome(end, trouble))
            return
        self._leave()
        if self._started:
            self._end_started(end)
        else:
            self._answer_whole(self._head, self._parts, end)

    def lost(self) -> None:
        if self.done:
            return
        if not self._started and self._can_replay() and self.ask.method in _IDEMPOTENT and not self.tried:
            self._again()
            return
        self.refuse(502, "instance-lost", "the function's instance went away before it answered")

    def room(self, count: int) -> None:
        self._room += count
        self._pump()

    # -- inside --

    def _pump(self) -> None:
        """Send of the body what there is room for; read from the client while little waits here."""
        if self._stream is not None:
            while self._body and self._room > 0:
                part = self._body.pop(0)
                size = min(self._room, _PIECE)
                if len(part) > size:
                    self._body.insert(0, part[size:])
                    part = part[:size]
                self._room -= len(part)
                self._unsent -= len(part)
                self._remember(part)
                self._last_sent = self._body_done and not self._body
                self._stream.send(part, last=self._last_sent)
            if self._body_done and not self._body and self.has_body and not self._last_sent:
                self._last_sent = True
                self._stream.send(b"", last=True)
        held = self._unsent > _PIECE
        if held is not self._held:
            self._held = held
            self._client.hold(on=held)

    def _remember(self, part: bytes) -> None:
        if self._replay is not None:
            self._replay.append(part)
            if sum(map(len, self._replay)) > self._desk.replay_bytes:
                self._replay = None

    def _can_replay(self) -> bool:
        return self._replay is not None and self._head is None

    def _again(self) -> None:
        self.tried.add(self.instance)
        self._body[:0] = self._replay or ()
        self._unsent = sum(map(len, self._body))
        self._replay = []
        self._last_sent = False
        self._parts.clear()
        self._stream = None
        self._desk.left(self, again=True)

    def _too_large(self) -> None:
        assert self.route is not None
        most = self.route[1].limits.body_bytes
        self.refuse(413, "body-too-large", f"the body is larger than this function takes, {most} bytes")

    def _leave(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
        self._body.clear()
        self._desk.left(self, again=False)

    def _answer_whole(self, head: AnswerHead, parts: list[bytes], end: Ended | None = None) -> None:
        body = b"".join(parts)
        bare = head.status in _NO_BODY or self.ask.method == b"HEAD"
        length = head.length if head.length is not None and bare else len(body)
        if head.length is not None and not bare and head.length != len(body):
            head, body = problem(502, *_WRONG_LENGTH, self.ask.request_id)
            length = len(body)
        keep = self._keep and self._body_done
        lines = self._head_lines(head, keep, end)
        if head.status not in _NO_BODY:
            lines.append(b"content-length: %d\r\n" % length)
        self._traced(head.status, end)
        self._client.write(b"".join((*lines, b"\r\n", b"" if bare else body)))
        self.done = True
        self._client.finished(keep=keep)

    def _write_parts(self) -> None:
        assert self._head is not None
        head, first = self._head, not self._started
        if first:
            if self.ask.method == b"HEAD" or head.status in _NO_BODY:
                self._took(self._parts)  # nobody sees them, but their end is waited for
                self._parts.clear()
                return
            self._started = True
            self._chunked = head.length is None and self.ask.version != b"1.0"
            self._keep = self._keep and (self._chunked or head.length is not None)
            lines = self._head_lines(head, self._keep and self._body_done, None)
            if head.length is not None:
                lines.append(b"content-length: %d\r\n" % head.length)
            elif self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
            self._client.write(b"".join((*lines, b"\r\n")))
        body = b"".join(self._parts)
        self._parts.clear()
        self._written += len(body)
        if head.length is not None and self._written > head.length:
            self._cut()
            return
        self._client.write(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)
        self._took([body])

    def _end_started(self, end: Ended) -> None:
        if self._parts:
            self._write_parts()
            if self.done:
                return
        assert self._head is not None
        if self._head.length is not None and self._written != self._head.length:
            self._cut()
            return
        self._traced(self._head.status, end)
        if self._chunked:
            self._client.write(b"0\r\n\r\n")
        self.done = True
        self._client.finished(keep=self._keep and self._body_done)

    def _cut(self) -> None:
        if not self.done:
            self.done = True
            self._traced(0)
            self._leave()
            self._client.abort()

    def _traced(self, status: int, end: Ended | None = None) -> None:
        """The trace ends with the answer; ``status`` 0: there was no whole one."""
        tracing, self.tracing = self.tracing, None
        if tracing is not None:
            tracing.finish(status, instantiate_s=end.instantiate_ns / 1e9 if end is not None else 0.0, cold=self.cold)

    def _took(self, parts: Sequence[bytes]) -> None:
        self._uncredited += sum(map(len, parts))
        if not self._slow:
            self._credit()

    def _credit(self) -> None:
        count, self._uncredited = self._uncredited, 0
        if count and self._stream is not None:
            self._stream.took(count)

    def _head_lines(self, head: AnswerHead, keep: bool, end: Ended | None) -> list[bytes]:
        key = (head, self.instance, self.cold, keep, self.ask.version)
        known = _known_lines.get(key)
        if known is None:
            known = b"".join(self._common_lines(head, keep))
            if len(_known_lines) >= _KNOWN_LINES:
                _known_lines.clear()
            _known_lines[key] = known
        lines = [known, b"x-request-id: %b\r\n" % self.ask.request_id]
        if self.tracing is not None:
            lines.append(b"x-corral-trace: %b\r\n" % self.tracing.trace_id.encode())
        if self.ask.said.traced and end is not None:
            spent = (self.waited_s * 1e3, end.instantiate_ns / 1e6, (end.wall_ns - end.instantiate_ns) / 1e6)
            lines.append(b"server-timing: queue;dur=%.3f, instantiate;dur=%.3f, run;dur=%.3f\r\n" % spent)
        return lines

    def _common_lines(self, head: AnswerHead, keep: bool) -> list[bytes]:
        """Those that are the same for many answers of one instance."""
        lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason or reason_of(head.status))]
        lines += [b"%b: %b\r\n" % header for header in head.headers]
        if self.route is not None and self.instance:
            lines.append(b"x-corral-revision: %b\r\n" % self.route[1].key.revision.encode())
            lines.append(b"x-corral-instance: %b\r\n" % self.instance.encode())
            lines.append(b"x-corral-start: %b\r\n" % (b"cold" if self.cold else b"warm"))
        if not keep:
            lines.append(b"connection: close\r\n")
        elif self.ask.version == b"1.0":
            lines.append(b"connection: keep-alive\r\n")
        return lines


_known_lines: dict[tuple[AnswerHead, str, bool, bool, bytes], bytes] = {}
_KNOWN_LINES: Final = 1024
_WRONG_LENGTH: Final = ("bad-program", "the function answered with another length than it announced")
