"""A running Firecracker in its jail: started by the jailer, watched by a pidfd, its words kept within bounds.

Its exit status says nothing (a guest that crashed it in the kernel's eyes ends with 0 too), so whatever it printed, log
and serial console together, is what a failure tells.
"""

import asyncio
import os
import re
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from corral.kernel.errors import CorralError, SandboxFailed
from corral.sandboxes.runtimes.child import Child, launcher_path
from corral.sandboxes.runtimes.firecracker_api import FirecrackerApi
from corral.sandboxes.runtimes.firecracker_jail import API_SOCKET, Jail

_CONSOLE_KEPT_BYTES: Final = 16_384
_CONSOLE_READ_BYTES_MAX: Final = 4 * 1024**2
_PIECE_BYTES: Final = 4096
_WORDS_MAX: Final = 600
_LAST_WORDS_S: Final = 0.3
_FAULT: Final = re.compile(r"^\d{4}-\d\d-\d\dT\S+ \[[^\]]*:ERROR\] (.*)$", re.MULTILINE)
_PANIC: Final = re.compile(r"Kernel panic - not syncing: .*|corral-guest: .*")


class Console:
    """What a machine prints. Its last 16 KiB are kept; after 4 MiB nobody listens any more, and the rest is dropped."""

    def __init__(self, descriptor: int) -> None:
        """Takes the reading end of a non-blocking pipe. In the event loop."""
        self._descriptor = descriptor
        self._kept = bytearray()
        self._read = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._on_ready)

    @property
    def text(self) -> str:
        """The end of all that was printed."""
        return self._kept.decode("utf-8", "replace").replace("\r", "")

    @property
    def fault(self) -> str:
        """Why it ended, in the monitor's words, else the guest's; the last lines when neither complained."""
        found = _FAULT.findall(self.text) or _PANIC.findall(self.text)
        lines = found[-1:] or self.text.strip().splitlines()[-4:]
        return " / ".join(lines)[-_WORDS_MAX:].strip()

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _on_ready(self) -> None:
        try:
            piece = os.read(self._descriptor, _PIECE_BYTES)
        except BlockingIOError:
            return
        self._read += len(piece)
        self._kept += piece
        del self._kept[:-_CONSOLE_KEPT_BYTES]
        if not piece or self._read >= _CONSOLE_READ_BYTES_MAX:
            self._loop.remove_reader(self._descriptor)


class Vmm:
    """One Firecracker, from ``start`` to ``close``. ``api`` is connected; ``pid`` is the host's."""

    def __init__(self, pid: int, api: FirecrackerApi, console: Console, pidfd: int) -> None:
        self.pid = pid
        self.api = api
        self.console = console
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_end)

    @classmethod
    async def start(cls, jail: Jail, jailer: Sequence[str], groups: Sequence[str], *, within_s: float) -> "Vmm":
        """Start it in its jail and in the control groups that are joined through the files ``groups``.

        Raises SandboxFailed with the jailer's or Firecracker's own words; nothing of it runs then.
        Cancellation: it is killed.
        """
        words, words_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        console = Console(words)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        argv = [str(launcher_path()), *(word for file in groups for word in ("-g", file)), "--", *jailer]
        pidfd = -1
        try:
            try:
                child = Child.spawn(argv, descriptors=(null, words_in, words_in))
            finally:
                os.close(null)
                os.close(words_in)
            pid = await _wait_jailed(child, jail, within_s=within_s)
            pidfd = os.pidfd_open(pid)
            with jail.near(API_SOCKET) as socket:
                api = await FirecrackerApi.connect(socket, ended=lambda: not _lives(pidfd), within_s=within_s)
        except BaseException as error:
            if pidfd >= 0:
                _kill(pidfd)
                os.close(pidfd)
            fault = console.fault
            console.close()
            if isinstance(error, OSError | CorralError):
                reason = error.message if isinstance(error, CorralError) else str(error)
                raise SandboxFailed(f"{reason}: {fault}" if fault else reason) from error
            raise
        return cls(pid, api, console, pidfd)

    @property
    def ended(self) -> bool:
        return self._gone.done()

    def kill(self) -> None:
        """SIGKILL; nothing when it has ended."""
        if not self.ended:
            _kill(self._pidfd)

    async def wait_ended(self, *, within_s: float) -> bool:
        """True once it has ended; False when ``within_s`` passed first. Cancellation: safe."""
        await asyncio.wait({self._gone}, timeout=within_s)
        return self.ended

    @contextmanager
    def at_end(self, call: Callable[[], None]) -> Iterator[None]:
        """Within the block, call back when it has ended."""

        def on_end(_: "asyncio.Future[None]") -> None:
            call()

        self._gone.add_done_callback(on_end)
        try:
            yield
        finally:
            self._gone.remove_done_callback(on_end)

    async def wait_fault(self) -> SandboxFailed:
        """Wait for its end; why it ended, as an error to raise. Cancellation: safe."""
        await asyncio.wait({self._gone})
        await asyncio.sleep(0)  # its last words are in the pipe, and read in this turn of the loop
        return SandboxFailed(f"the machine ended: {self.console.fault or 'firecracker said nothing'}")

    def close(self) -> None:
        """Kill it, and free our ends; idempotent."""
        self.kill()
        self.api.close()
        self.console.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if not self._gone.done():
            self._gone.set_result(None)


async def _wait_jailed(child: Child, jail: Jail, *, within_s: float) -> int:
    """The jailer starts Firecracker as process 1 of a PID namespace, says who that is on the host, and ends."""
    if not await child.wait_ended(within_s=within_s):
        child.kill()
        await child.wait_ended(within_s=within_s)
        raise SandboxFailed(f"the jailer did not end within {within_s:g} s")
    if child.status != 0:
        await asyncio.sleep(_LAST_WORDS_S)
        raise SandboxFailed(f"the jailer ended with status {child.status}")
    return int(jail.pid_file.read_text())


def _lives(pidfd: int) -> bool:
    """A process that has ended makes its pidfd readable, reaped or not (pidfd_open(2))."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return not poller.poll(0)


def _kill(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
