"""A component behind ``wasmtime serve``: a process of its own for each instance, in a network of its own.

``corral-wasm-host … apart`` (native/wasm-host/apart.c) lays that network out and stays beside the server: it hands the
worker the sockets behind which the component expects its destinations, and fronts a connection to the server for each
that they ask for. The server makes a fresh instance of the component for every request. When the worker goes, both go.
"""

import asyncio
import os
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.functions.engine.compiler import component_flags
from corral.functions.engine.destinations import Place, hosts_text
from corral.functions.engine.outbound import Outbound
from corral.functions.frames import Counters
from corral.functions.model import RevisionSpec
from corral.kernel.errors import SandboxFailed
from corral.sandboxes.runtimes.child import Child

SERVER: Final = "127.77.0.1:8080"
"""Where the server listens, in its own network; no destination's place is there."""
CODE: Final = "/proc/self/fd/3"
_SEEN: Final = 6
_SERVING: Final = b"Serving HTTP on http://"
_LOGGED: Final = re.compile(r"(stdout|stderr) \[([0-9]{1,20})\] :: (.*)")
_COMPLAINTS: Final = ("Error: ", "corral-wasm-host: ")
_LINE_MAX: Final = 16 * 1024
_SLOTS_MAX: Final = 1000
_SPARE_STACKS: Final = 8
_HOST_STACK_BYTES: Final = 1536 * 1024
_DESTINATIONS_MAX: Final = 100
_LOGS_KEPT: Final = 1024
_BACKLOG: Final = 512

OnLine = Callable[[str, str, str], None]
"""Stream, the server's number of the request or "", text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A directory of the worker that the component sees."""

    path: Path
    guest: str
    writable: bool


def apart_arguments(host: str, limits: dict[str, int], places: Sequence[Place], seen: Sequence[Seen]) -> list[str]:
    """The command line before that of the server; ``hosts=`` is still to come."""
    return [
        *(host, "-", "apart", f"enter={SERVER}"),
        *(f"{name}={value}" for name, value in limits.items()),
        *(f"call={each.address}" for each in places),
        *(f"{'write' if each.writable else 'see'}={each.path}" for each in seen),
    ]


def serve_arguments(command: Sequence[str], spec: RevisionSpec, seen: Sequence[Seen]) -> list[str]:
    """The command line that serves this component with its limits."""
    limits = spec.limits
    slots = min(limits.concurrency * limits.core_instances, _SLOTS_MAX)
    pools = {
        "total-stacks": limits.concurrency + _SPARE_STACKS,
        "total-component-instances": limits.concurrency + _SPARE_STACKS,
        "total-core-instances": slots,
        "total-memories": slots,
        "total-tables": slots,
        "table-elements": limits.table_elements,
        "max-memory-size": limits.memory_bytes,
    }
    flags = [
        *component_flags(spec),
        *(part for name, value in pools.items() for part in ("-O", f"pooling-{name}={value}")),
        *("-W", f"async-stack-size={_stack_bytes(spec)}"),
        *("-W", f"max-memory-size={limits.memory_bytes}"),
        *("-W", f"max-table-elements={limits.table_elements}"),
        *("-W", f"max-instances={limits.core_instances}"),
        *("-W", f"max-memories={limits.core_instances}"),
        *("-W", f"max-tables={limits.core_instances}"),
        *("-W", f"max-wasm-stack={limits.stack_bytes}"),
        *("-W", f"timeout={max(1, int(limits.wall_s * 1000))}ms"),
        *("-S", "cli=y"),
    ]
    env = [part for name, value in spec.env.items() for part in ("--env", f"{name}={value}")]
    dirs = [part for n, each in enumerate(seen) for part in ("--dir", f"/proc/self/fd/{_SEEN + n}::{each.guest}")]
    reuse = ["--max-instance-reuse-count", "1", "--max-concurrent-requests", str(limits.concurrency)]
    return [*command, "serve", *flags, *reuse, "--allow-precompiled", "--addr", SERVER, *env, *dirs, CODE]


def writable_bytes(spec: RevisionSpec) -> int:
    """What its requests may have at once: memories and stacks."""
    stacks = (spec.limits.concurrency + _SPARE_STACKS) * _stack_bytes(spec)
    return spec.limits.memory_bytes * spec.limits.concurrency + stacks


def _stack_bytes(spec: RevisionSpec) -> int:
    """Of the program, and of what it calls."""
    return spec.limits.stack_bytes + _HOST_STACK_BYTES


class ComponentProcess:
    """One instance, made by ``start``; ``pid`` is the server's. ``counters`` are what the front says of it."""

    def __init__(self, child: Child, line: socket.socket, words: int, path: Path, on_line: OnLine) -> None:
        self.pid = 0
        self.counters: Counters | None = None
        self.outbound: Outbound | None = None
        self._child, self._line, self._words, self._path, self._on_line = child, line, words, path, on_line
        self._loop = asyncio.get_running_loop()
        self._serving: asyncio.Future[None] = self._loop.create_future()
        self._listeners: asyncio.Future[list[socket.socket]] = self._loop.create_future()
        self._pending = b""
        self._last = ""
        self._open = True
        os.set_blocking(words, False)
        self._loop.add_reader(words, self._readable)
        self._loop.add_reader(line, self._told)

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        server: Sequence[str],
        code: int,
        *,
        path: Path,
        places: Sequence[Place],
        outbound: Outbound,
        env: dict[str, str],
        on_line: OnLine,
        within_s: float,
    ) -> "ComponentProcess":
        """Start it with the compiled code, and wait until it serves; fronts ask for connections at the socket ``path``.

        Raises: SandboxFailed. Cancellation: kills it.
        """
        hosts = path.with_suffix(".hosts")
        await asyncio.to_thread(hosts.write_text, hosts_text(places))
        process = cls._spawn([*argv, f"hosts={hosts}", "--", *server], code, path, env, on_line)
        process.outbound = outbound
        try:
            async with asyncio.timeout(within_s):
                listeners = await process._listeners
                await outbound.serve(listeners, [each.destination for each in places])
                await process._serving
        except TimeoutError as error:
            process.stop()
            raise SandboxFailed(f"wasmtime serve did not serve within {within_s:g} s") from error
        except BaseException:
            process.stop()
            raise
        return process

    @classmethod
    def _spawn(
        cls, argv: Sequence[str], code: int, path: Path, env: dict[str, str], on_line: OnLine
    ) -> "ComponentProcess":
        reading, writing = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            ours.setblocking(False)
            path.unlink(missing_ok=True)
            door.bind(str(path))
            door.listen(_BACKLOG)
            descriptors = (null, writing, writing, code, theirs.fileno(), door.fileno())
            child = Child.spawn(argv, descriptors=descriptors, env={"HOME": "/nonexistent", **env})
        except OSError as error:
            os.close(reading)
            ours.close()
            raise SandboxFailed(f"wasmtime serve does not start: {error}") from error
        finally:
            os.close(null)
            os.close(writing)
            theirs.close()
            door.close()
        return cls(child, ours, reading, path, on_line)

    @property
    def address(self) -> str:
        """Where the front of this worker reaches it; names its process, whose time the front measures."""
        return f"component:{self.pid}:{self._path}"

    def stop(self) -> None:
        """End it now, with all that runs in it."""
        self._child.kill()
        self._close()

    async def wait_ended(self, *, within_s: float) -> bool:
        """True when the process is gone. Cancellation: safe."""
        return await self._child.wait_ended(within_s=within_s)

    @property
    def status(self) -> int | None:
        return self._child.status

    def _told(self) -> None:
        """The one message that ever comes: the server's process, and the listening sockets of its network."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._line, 16, _DESTINATIONS_MAX)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            message, descriptors = b"", []
        self._loop.remove_reader(self._line)
        listeners = [socket.socket(fileno=each) for each in descriptors]
        if len(message) == 4 and not self._listeners.done():
            (self.pid,) = struct.unpack("<I", message)
            self._listeners.set_result(listeners)
            return
        for each in listeners:
            each.close()

    def _readable(self) -> None:
        try:
            data = os.read(self._words, _LINE_MAX)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > _LINE_MAX:
            lines, self._pending = [*lines, self._pending], b""
        for line in lines:
            if not self._serving.done() and line.startswith(_SERVING):
                self._serving.set_result(None)
            else:
                self._word(line.decode("utf-8", "replace"))

    def _word(self, text: str) -> None:
        if text.startswith(_COMPLAINTS) and not self._last:
            self._last = text
        found = _LOGGED.fullmatch(text)
        self._on_line(*(found.groups() if found is not None else ("engine", "", text)))

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._words)
        os.close(self._words)
        self._loop.remove_reader(self._line)
        self._line.close()
        if self.outbound is not None:
            self.outbound.close()
        for leftover in (self._path, self._path.with_suffix(".hosts")):
            leftover.unlink(missing_ok=True)
        failed = SandboxFailed(f"wasmtime serve ended before it served: {self._last or 'it says nothing'}")
        for waited in (self._listeners, self._serving):
            if not waited.done():
                waited.set_exception(failed)
                waited.exception()  # both are told, and one is waited for


class CappedLogs:
    """What requests of one component may log: ``log_bytes`` each, by the server's numbers."""

    def __init__(self, log_bytes: int) -> None:
        self._bytes = log_bytes
        self._left: dict[str, int] = {}

    def take(self, number: str, text: str) -> str:
        """As much of the line as the request may still log."""
        left = self._left.get(number, self._bytes)
        if number not in self._left and len(self._left) >= _LOGS_KEPT:
            del self._left[next(iter(self._left))]
        self._left[number] = max(0, left - len(text) - 1)
        return text[:left]


def private_sockets(directory: Path) -> Path:
    """A private directory for sockets, empty: those of a predecessor lead nowhere."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(directory, 0o700)
    for leftover in directory.iterdir():
        leftover.unlink()
    return directory
