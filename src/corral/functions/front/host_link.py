"""The connection of a front to one native host: many calls at once, as frames over a unix socket.

What a host sends is not trusted: its process runs other people's programs. A frame that makes no sense ends the
connection, and with it the calls that it carried.
"""

import asyncio
import socket
import struct
from typing import Final

from corral.functions import frames
from corral.functions.front.cgi import Asking, BadAnswer, answer_head, split_head, variables
from corral.functions.front.flow import Flow
from corral.functions.front.lanes import Lane
from corral.functions.front.upstream import Sink
from corral.functions.model import Limits, RevisionKey

_STREAMS_MAX: Final = 2**32 - 1
_HEAD_BYTES: Final = frames.HEAD.size
_GRANT_AT: Final = frames.WINDOW // 4
_BAD: Final = frames.Ended(frames.Outcome.BROKEN, 0, 0, 0, 0)


class HostStream:
    """One call."""

    __slots__ = ("_granted", "_head", "_left", "_link", "_number", "_printed", "_sink")

    def __init__(self, link: "HostLink", number: int, sink: Sink) -> None:
        self._link = link
        self._number = number
        self._sink: Sink | None = sink
        self._printed = b""
        self._head = False
        self._granted = 0
        self._left = frames.WINDOW

    def send(self, data: bytes, *, last: bool) -> None:
        self._link.write(frames.frame(frames.BODY, self._number, data, flags=frames.LAST if last else 0))

    def took(self, count: int) -> None:
        self._granted += count
        if self._granted >= _GRANT_AT and self._sink is not None:
            self._left += self._granted
            self._link.write(frames.frame(frames.CREDIT, self._number, frames.credit_payload(self._granted)))
            self._granted = 0

    def cancel(self) -> None:
        if self._sink is not None:
            self._sink = None
            self._link.write(frames.frame(frames.CANCEL, self._number))

    def heard(self, kind: int, payload: bytes) -> bool:
        """One frame; True when it was the last one. Raises ValueError for one that makes no sense."""
        sink = self._sink
        if kind == frames.END:
            self._sink = None
            if sink is not None:
                self._end(sink, frames.ended_of(payload))
            return True
        if sink is None:
            return False
        if kind == frames.OUT:
            self._left -= len(payload)
            if self._left < 0:
                raise ValueError("more than the window")
            self._out(sink, payload)
        elif kind == frames.CREDIT:
            sink.room(frames.credit_of(payload))
        else:
            raise ValueError(f"kind {kind}")
        return False

    def flush(self) -> None:
        if self._sink is not None:
            self._sink.flush()

    def lost(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.lost()

    def _out(self, sink: Sink, payload: bytes) -> None:
        if self._head:
            sink.data(payload)
            return
        self._printed += payload
        try:
            found = split_head(self._printed)
            if found is None:
                self.took(len(payload))
                return
            head = answer_head(found[0])
        except BadAnswer as error:
            self.cancel()
            sink.ended(_BAD, str(error))
            return
        self._head = True
        sink.answer(head)
        body = self._printed[found[1] :]
        self.took(len(payload) - len(body))
        self._printed = b""
        if body:
            sink.data(body)

    def _end(self, sink: Sink, end: frames.Ended) -> None:
        missing = not self._head and end.outcome is frames.Outcome.OK
        sink.ended(end, "the program ended without an empty line after its headers" if missing else "")


class HostLink:
    """One connection, made at the first call and again after it was lost."""

    first_room = frames.WINDOW

    def __init__(self, path: str, lane: Lane) -> None:
        self._path, self._lane = path, lane
        self._loop = asyncio.get_running_loop()
        self._flow: Flow | None = None
        self._streams: dict[int, HostStream] = {}
        self._next = 1
        self._pending = b""
        self._touched: list[HostStream] = []  # they heard something, and go on
        self._closing = False

    def open(
        self, sink: Sink, *, instance: str, key: RevisionKey, limits: Limits, ask: Asking, has_body: bool
    ) -> HostStream:
        number = self._next
        self._next = number + 1 if number < _STREAMS_MAX else 1
        stream = self._streams[number] = HostStream(self, number, sink)
        if self._flow is None:
            self._connect()
        flags = 0 if has_body else frames.LAST
        wall_ms = max(1, int(limits.wall_s * 1000))
        self.write(frames.call_frame(number, instance.encode(), wall_ms, variables(ask), flags=flags))
        return stream

    def close(self) -> None:
        self._closing = True
        self._close_if_done()

    def write(self, data: bytes) -> None:
        """Send it at the end of this turn of the loop."""
        if self._flow is not None:
            self._flow.write(data)

    def _connect(self) -> None:
        """At once: a unix socket connects or fails without waiting."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            self._loop.call_soon(self._give_up)
            return
        self._flow = Flow(connection, self._lane, received=self._received, broken=self._give_up)

    def _received(self, data: bytes) -> None:
        self._pending += data
        self._go_on()

    def _go_on(self) -> None:
        try:
            done = self._take(self._pending)
        except (ValueError, struct.error):  # also of an outcome that is none
            self._give_up()
            return
        if not done:
            self._lane.put_off(self._go_on)
            return
        touched, self._touched = self._touched, []
        for stream in touched:
            stream.flush()
        if self._closing:
            self._close_if_done()

    def _take(self, data: bytes) -> bool:
        """Hand the whole frames to their streams, as long as it is the lane's turn; False when some are left."""
        place, size = 0, len(data)
        while size - place >= _HEAD_BYTES:
            length, kind, _, _, number = frames.HEAD.unpack_from(data, place)
            if length > frames.PAYLOAD_MAX:
                raise ValueError(f"{length} bytes in a frame")
            after = place + _HEAD_BYTES + length
            if after > size:
                break
            if place and self._lane.over:
                self._pending = data[place:]
                return False
            stream = self._streams.get(number)
            if stream is not None:
                if stream.heard(kind, data[place + _HEAD_BYTES : after]):
                    self._streams.pop(number, None)
                else:
                    self._touched.append(stream)
            place = after
        self._pending = data[place:]
        return True

    def _give_up(self) -> None:
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()
        self._pending = b""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lost()

    def _close_if_done(self) -> None:
        if not self._streams:
            self._give_up()
