"""The helper that lays directories into running sandboxes (native/stage): a child process, started when first needed.

It needs the rights of root on this machine; without them inputs are copied.
"""

import asyncio
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from corral.actions.trees import Layer
from corral.kernel.errors import SandboxFailed
from corral.kernel.native import native_program

_ANSWER_WITHIN_S: Final = 10.0
_ANSWER_BYTES: Final = 4096
_REQUEST_BYTES: Final = 60_000

_log = structlog.get_logger(__name__)


def helper_path() -> Path:
    """The static helper; ``CORRAL_STAGE`` overrides it. Raises SandboxFailed when absent."""
    return native_program("stage", what="the helper that stages inputs", variable="CORRAL_STAGE")


@dataclass(frozen=True, slots=True)
class Inside:
    """A sandbox's process 1 as this host sees it, the mount namespace that it must be in, and its user's id here."""

    pid: int
    mounts: int
    owner: int


def inside_of(pid: int) -> Inside | None:
    """Look from a runtime's process down to process 1 of the sandbox that it started; None when there is none."""
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        try:
            status = Path(f"/proc/{each}/status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            numbers = fields.get("NSpid", "").split()
            if len(numbers) > 1 and numbers[-1] == "1":
                return Inside(each, os.stat(f"/proc/{each}/ns/mnt").st_ino, int(fields["Uid"].split()[1]))
            waiting += [int(child) for child in Path(f"/proc/{each}/task/{each}/children").read_text().split()]
        except (OSError, ValueError, KeyError):
            continue  # it ended while we looked
    return None


class StageHelper:
    """Asks the helper. ``close`` ends it; it also ends with us."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: dict[str, asyncio.Future[str]] = {}
        self._last = 0

    async def mount(self, inside: Inside, place: str, layers: Sequence[Layer], *, uid: int, gid: int) -> None:
        """Lay the layers below ``place``/build. Raises SandboxFailed in the helper's words."""
        pairs = [field for layer in layers for field in (layer.directory, layer.path)]
        await self._ask("mount", str(inside.pid), str(inside.mounts), str(uid), str(gid), place, *pairs)

    async def unmount(self, inside: Inside, place: str, layers: Sequence[Layer]) -> None:
        """Take them away. Raises SandboxFailed in the helper's words."""
        await self._ask("unmount", str(inside.pid), str(inside.mounts), place, *[layer.path for layer in layers])

    def close(self) -> None:
        """End the helper; idempotent."""
        connection, self._socket = self._socket, None
        process, self._process = self._process, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection.fileno())
            connection.close()
        for future in self._asked.values():
            if not future.done():
                future.set_result("the helper has ended")
        self._asked.clear()
        if process is not None:
            process.wait()  # its socket is closed, so it ends now

    async def _ask(self, *fields: str) -> None:
        self._last += 1
        name = str(self._last)
        packet = b"".join(field.encode(errors="surrogateescape") + b"\0" for field in (name, *fields))
        if len(packet) > _REQUEST_BYTES:
            raise SandboxFailed("the paths of the inputs' layers are too long")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[name] = answer
        try:
            self._opened().send(packet)
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                sentence = await answer
        except TimeoutError:
            sentence = f"the helper did not answer within {_ANSWER_WITHIN_S:g} s"
        except OSError as error:
            self.close()
            sentence = f"the helper cannot be asked: {error.strerror}"
        finally:
            self._asked.pop(name, None)
        if sentence:
            raise SandboxFailed(sentence)

    def _opened(self) -> socket.socket:
        if self._socket is None:
            path = helper_path()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [str(path)], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env={}, cwd="/"
                )
            ours.setblocking(False)
            self._socket = ours
            asyncio.get_running_loop().add_reader(ours.fileno(), self._heard)
        return self._socket

    def _heard(self) -> None:
        assert self._socket is not None  # the reader goes with it
        try:
            packet = self._socket.recv(_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            _log.error("the helper that stages inputs has ended")
            self.close()
            return
        name, _, sentence = packet.partition(b"\0")
        future = self._asked.get(name.decode(errors="replace"))
        if future is not None and not future.done():
            future.set_result(sentence.rstrip(b"\0").decode(errors="replace"))
