"""One tenant's native host: the process, its socket for fronts, and the worker's line to it.

The line is a SOCK_SEQPACKET pair. The host leaves when the line does, so a worker that is killed leaves no host. What
the host says is not trusted; a message that makes no sense is dropped.
"""

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from corral.functions import frames
from corral.kernel.errors import SandboxFailed
from corral.sandboxes.runtimes.child import Child

_READ_MAX: Final = 600 * 1024
_READS_PER_TURN: Final = 64
_BACKLOG: Final = 512
_LINE_BYTES: Final = 4 * 1024**2
OnLog = Callable[[str, str, str, bytes], None]
"""Stream, key of the instance, request id, bytes."""


class HostProcess:
    """See the module. Made by ``start``; ``stop`` is idempotent, and ``wait_ended`` tells when it is gone."""

    def __init__(self, child: Child, line: socket.socket, path: Path, *, on_log: OnLog) -> None:
        self.pid = child.pid
        self.address = f"unix:{path}"
        self.counters: dict[str, frames.Counters] = {}
        self._child, self._line, self._path, self._on_log = child, line, path, on_log
        self._loaded: deque[asyncio.Future[bool]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(line, self._readable)
        self._open = True

    @classmethod
    def start(cls, argv: Sequence[str], path: Path, *, on_log: OnLog) -> "HostProcess":
        """Start it; ``argv`` gets the line as descriptor 3 and the socket at ``path`` as 4. Raises SandboxFailed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LINE_BYTES)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LINE_BYTES)
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen(_BACKLOG)
            child = Child.spawn(argv, descriptors=(null, 2, 2, theirs.fileno(), listener.fileno()), env={})
        except OSError as error:
            ours.close()
            raise SandboxFailed(f"the host of functions does not start: {error}") from error
        finally:
            os.close(null)
            theirs.close()
            listener.close()
        return cls(child, ours, path, on_log=on_log)

    @property
    def alive(self) -> bool:
        return self._open and self._child.status is None

    async def load(self, program: frames.Program, descriptors: Sequence[int]) -> bool:
        """Give it a program; the descriptors stay the caller's. False when it refuses; it may also be gone.

        Raises: SandboxFailed when it is gone. Cancellation: it may be loaded.
        """
        answer: asyncio.Future[bool] = self._loop.create_future()
        message = frames.frame(frames.LOAD, 0, frames.load_payload(program))
        try:
            socket.send_fds(self._line, [message], list(descriptors))
        except OSError as error:
            raise SandboxFailed(f"the host of functions does not take a program: {error.strerror}") from error
        self._loaded.append(answer)
        return await answer

    def unload(self, key: str) -> None:
        """Take no more calls for this instance; those that run go on."""
        self.counters.pop(key, None)
        if self.alive:
            try:
                self._line.send(frames.frame(frames.UNLOAD, 0, key.encode()))
            except OSError:
                self.stop()

    def stop(self) -> None:
        """End it now, with all that runs in it."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._line)
            self._line.close()
            self._path.unlink(missing_ok=True)
            while self._loaded:
                answer = self._loaded.popleft()
                if not answer.done():
                    answer.set_exception(SandboxFailed("the host of functions went away"))
        self._child.kill()

    async def wait_ended(self, *, within_s: float) -> bool:
        """True when the process is gone. Cancellation: safe."""
        return await self._child.wait_ended(within_s=within_s)

    @property
    def status(self) -> int | None:
        return self._child.status

    def _readable(self) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                message = self._line.recv(_READ_MAX)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                message = b""
            if not message:
                self.stop()
                return
            try:
                self._heard(message[4], message[frames.HEAD.size :])
            except (IndexError, struct.error, UnicodeDecodeError):
                continue  # a tenant's process may say what it likes

    def _heard(self, kind: int, payload: bytes) -> None:
        if kind == frames.LOADED and self._loaded:
            answer = self._loaded.popleft()
            if not answer.done():
                answer.set_result(payload == b"\x01")
        elif kind == frames.STATS:
            key, counters = frames.counters_of(payload)
            self.counters[key] = counters
        elif kind == frames.LOG:
            self._on_log(*frames.log_of(payload))
