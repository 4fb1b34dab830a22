"""A component behind ``wasmtime serve``: a process of its own for each instance, on a free loopback port.

The process may listen and answer; its seccomp filter forbids to connect anywhere. It makes a fresh instance of the
component for every request.
"""

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from corral.functions.engine.compiler import component_flags
from corral.functions.model import RevisionSpec
from corral.kernel.errors import SandboxFailed
from corral.sandboxes.runtimes.child import Child

_SERVING: Final = re.compile(rb"Serving HTTP on http://127\.0\.0\.1:([0-9]{1,5})/")
_LINE_MAX: Final = 16 * 1024


def serve_arguments(command: Sequence[str], spec: RevisionSpec, code: str) -> list[str]:
    """The command line that serves this component with its limits."""
    limits = spec.limits
    flags = [
        *component_flags(spec),
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
    reuse = ["--max-instance-reuse-count", "1", "--max-concurrent-requests", str(limits.concurrency)]
    return [*command, "serve", *flags, *reuse, "--allow-precompiled", "--addr", "127.0.0.1:0", *env, code]


class ComponentProcess:
    """One instance. ``address`` is known after ``start``."""

    def __init__(self, child: Child, words: int, on_line: Callable[[str], None]) -> None:
        self.pid = child.pid
        self.address = ""
        self._child, self._words, self._on_line = child, words, on_line
        self._loop = asyncio.get_running_loop()
        self._serving: asyncio.Future[str] = self._loop.create_future()
        self._pending = b""
        self._open = True
        os.set_blocking(words, False)
        self._loop.add_reader(words, self._readable)

    @classmethod
    async def start(
        cls, argv: Sequence[str], code: int, *, on_line: Callable[[str], None], within_s: float
    ) -> "ComponentProcess":
        """Start ``argv`` with the compiled code as descriptor 3, and wait until it serves.

        Raises: SandboxFailed. Cancellation: kills it.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            child = Child.spawn(argv, descriptors=(null, writing, writing, code), env={"HOME": "/nonexistent"})
        except OSError as error:
            os.close(reading)
            raise SandboxFailed(f"wasmtime serve does not start: {error}") from error
        finally:
            os.close(null)
            os.close(writing)
        process = cls(child, reading, on_line)
        try:
            async with asyncio.timeout(within_s):
                process.address = await process._serving
        except TimeoutError:
            process.stop()
            raise SandboxFailed(f"wasmtime serve was not ready within {within_s:g} s") from None
        except BaseException:
            process.stop()
            raise
        return process

    @property
    def alive(self) -> bool:
        return self._open and self._child.status is None

    def stop(self) -> None:
        """End it now."""
        self._child.kill()
        self._close()

    async def wait_ended(self, *, within_s: float) -> bool:
        """True when the process is gone. Cancellation: safe."""
        return await self._child.wait_ended(within_s=within_s)

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
            found = _SERVING.search(line) if not self._serving.done() else None
            if found is not None:
                self._serving.set_result(f"127.0.0.1:{int(found[1])}")
            else:
                self._on_line(line.decode("utf-8", "replace"))

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._words)
            os.close(self._words)
        if not self._serving.done():
            self._serving.set_exception(SandboxFailed("wasmtime serve ended before it served"))


def code_path(descriptor: int = 3) -> str:
    """How a process names the code that it was given."""
    return f"/proc/self/fd/{descriptor}"


def private_sockets(directory: Path) -> Path:
    """A private directory for sockets, empty: those of a predecessor lead nowhere."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(directory, 0o700)
    for leftover in directory.iterdir():
        leftover.unlink()
    return directory
