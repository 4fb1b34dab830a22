"""A child process, spawned without fork's copy and watched through a pidfd: no signal handler, no thread."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from corral.kernel.errors import SandboxFailed
from corral.kernel.native import native_program

_WORDS_BYTES_MAX: Final = 4096


def launcher_path() -> Path:
    """The static launcher (native/launch); ``CORRAL_LAUNCH`` overrides it. Raises SandboxFailed when absent."""
    return native_program("launch", what="the sandbox launcher", variable="CORRAL_LAUNCH")


def birth_of(pid: int) -> int | None:
    """When a process was born, in clock ticks since boot (proc_pid_stat(5), field 22); None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


class Child:
    """One child of this process, from spawn to reaped. Reaping happens by itself; it must run in the event loop."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @classmethod
    def spawn(cls, argv: Sequence[str], *, descriptors: Sequence[int], env: Mapping[str, str] | None = None) -> Self:
        """Start ``argv[0]`` (a path) with ``descriptors`` as 0, 1, 2, … and the given environment (default: empty).

        Raises OSError. Costs the loop about half a millisecond (vfork and exec).
        """
        # first out of the way, above them all, then into place: a target may be another one's source
        free = max(len(descriptors), *descriptors) + 1
        moves = [(os.POSIX_SPAWN_DUP2, source, free + n) for n, source in enumerate(descriptors)]
        moves += [(os.POSIX_SPAWN_DUP2, free + n, n) for n in range(len(descriptors))]
        closes = [(os.POSIX_SPAWN_CLOSE, free + n) for n in range(len(descriptors))]
        pid = os.posix_spawn(argv[0], list(argv), env or {}, file_actions=[*moves, *closes], setsigmask=())
        return cls(pid)

    @property
    def status(self) -> int | None:
        """Exit status, or minus the signal; None while it lives."""
        return self._ended.result() if self._ended.done() else None

    def kill(self) -> None:
        """SIGKILL; nothing when it has ended."""
        if not self._ended.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait_ended(self, *, within_s: float) -> bool:
        """True once it has ended and is reaped; False when ``within_s`` passed first. Cancellation: safe."""
        await asyncio.wait({self._ended}, timeout=within_s)
        return self._ended.done()

    def _reap(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else reaped it; its status is unknown
            pid, status = self.pid, 0
        if not pid:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._ended.done():
            self._ended.set_result(os.waitstatus_to_exitcode(status))


async def run_to_end(command: Sequence[str], *, beside: int, within_s: float) -> None:
    """Run a program as root of the user namespace of process ``beside``, and wait for its end.

    Raises SandboxFailed with its own words when it fails, or takes longer. Cancellation: it is killed.
    """
    words, words_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    argv = [str(launcher_path()), "-j", str(beside), "--", *command]
    try:
        try:
            child = Child.spawn(argv, descriptors=(null, words_in, words_in))
        finally:
            os.close(null)
            os.close(words_in)
        try:
            ended = await child.wait_ended(within_s=within_s)
        finally:
            child.kill()
        if ended and child.status == 0:
            return
        said = ""
        with suppress(BlockingIOError):  # it lives, and has said nothing
            said = os.read(words, _WORDS_BYTES_MAX).decode("utf-8", "replace").strip()
        reason = said or (f"status {child.status}" if ended else f"no end within {within_s:g} s")
        raise SandboxFailed(f"{Path(command[0]).name} failed: {reason}")
    finally:
        os.close(words)
