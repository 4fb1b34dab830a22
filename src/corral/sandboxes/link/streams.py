"""One stream of a link: what came in and waits for its reader, and how much may go out.

Nothing here awaits the socket: a stream whose reader stops holds at most one window, because credit is only given
back for what was read. Used from the link's event loop only.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

from corral.kernel.errors import CorralError
from corral.sandboxes.link import protocol
from corral.sandboxes.link.protocol import Frame

_GIVE_BACK_AT: Final = protocol.WINDOW_BYTES // 2
_COUNTED: Final = frozenset((protocol.T_STDOUT, protocol.T_STDERR, protocol.T_DATA, protocol.T_ENTRY))
_LAST: Final = frozenset(
    (
        *(protocol.T_NOT_STARTED, protocol.T_EXIT, protocol.T_DONE, protocol.T_FILE_ERROR, protocol.T_SPACE_IS),
        *(protocol.T_READY, protocol.T_SETUP_FAILED, protocol.T_PONG, protocol.T_RESET_DONE),
    )
)


class Sender(Protocol):
    """The part of the link that a stream needs."""

    def send(self, kind: int, stream: int, payload: bytes = b"") -> None:
        """Queue a frame; raises SandboxLost when the link has ended."""
        ...

    def forget(self, stream: int) -> None:
        """The stream has seen its last frame."""
        ...


class Stream:
    """Frames of one exec or file operation, in order, with credit in both directions.

    Attributes:
        ended: its last frame has arrived (it may still wait to be read), or the link failed.
    """

    __slots__ = (
        "_credit",
        "_failure",
        "_frames",
        "_link",
        "_owed",
        "_readable",
        "_received",
        "_writable",
        "ended",
        "id",
    )

    def __init__(self, link: Sender, number: int) -> None:
        self.id = number
        self.ended = False
        self._link = link
        self._frames: deque[Frame] = deque()
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._failure: CorralError | None = None
        self._credit = protocol.WINDOW_BYTES
        self._received = 0
        self._owed = 0

    async def wait_frame(self) -> Frame:
        """The next frame. One reader at a time.

        Raises:
            SandboxLost: the link ended before the stream did; frames that came before it are given out first.
        Cancellation: safe, nothing is lost.
        """
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            self._readable = asyncio.get_running_loop().create_future()
            try:
                await self._readable
            finally:
                self._readable = None
        frame = self._frames.popleft()
        if frame.type in _COUNTED:
            self._give_back(len(frame.payload))
        return frame

    async def wait_credit(self) -> int:
        """Bytes that may be sent now, at least 1; 0 when the stream has ended. Cancellation: safe."""
        while self._credit == 0 and not self.ended:
            self._writable = asyncio.get_running_loop().create_future()
            try:
                await self._writable
            finally:
                self._writable = None
        return 0 if self.ended else self._credit

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame that needs no credit; nothing happens when the stream has ended."""
        if not self.ended:
            self._link.send(kind, self.id, payload)

    def send_counted(self, kind: int, payload: bytes) -> None:
        """Send a frame within the credit that :meth:`wait_credit` told; entries may overdraw it by their length."""
        if not self.ended:
            self._credit = max(0, self._credit - len(payload))
            self._link.send(kind, self.id, payload)

    def on_frame(self, frame: Frame) -> None:
        """The link got a frame for this stream.

        Raises:
            ProtocolError: the agent sent more than it had credit for.
        """
        if frame.type == protocol.T_CREDIT:
            self._credit = min(self._credit + protocol.decode_u32(frame.payload), protocol.WINDOW_BYTES)
            _wake(self._writable)
            return
        if frame.type in _COUNTED:
            self._received += len(frame.payload)
            if self._received > protocol.WINDOW_BYTES + protocol.DATA_BYTES_MAX:
                raise protocol.ProtocolError("more bytes than the stream's window")
        self._frames.append(frame)
        if frame.type in _LAST:
            self.ended = True
            self._link.forget(self.id)
            _wake(self._writable)
        _wake(self._readable)

    def fail(self, failure: CorralError) -> None:
        """The link ended, or the stream is given up."""
        if not self.ended:
            self.ended = True
            self._failure = failure
            _wake(self._readable)
            _wake(self._writable)

    def _give_back(self, size: int) -> None:
        self._received -= size
        self._owed += size
        if self._owed >= _GIVE_BACK_AT and not self.ended:
            self._link.send(protocol.T_CREDIT, self.id, protocol.encode_u32(self._owed))
            self._owed = 0


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
