"""A sandbox: one class for every runtime, all of it through the agent at the far end of the box's link."""

import asyncio
import posixpath
import signal
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from corral.kernel.concurrency import finish
from corral.kernel.errors import InvalidSpec, NotFound, SandboxLost
from corral.sandboxes.link import files, protocol
from corral.sandboxes.link.execution import Channel, Execution
from corral.sandboxes.link.files import Entries
from corral.sandboxes.link.setup import WORK
from corral.sandboxes.model import (
    MIB,
    End,
    EntryKind,
    ExecRequest,
    ExecResult,
    SandboxSpec,
    Space,
    TreeEntry,
    TreeLimits,
)
from corral.sandboxes.ports import Box, LimitEvents

OutputSink = Callable[[Channel, bytes], Awaitable[None] | None]
"""Gets each piece of output: 1 for stdout, 2 for stderr. Awaiting what it returns is back-pressure."""

Stdin = bytes | AsyncIterable[bytes]

_CLEANUP_WITHIN_S: Final = 60.0
_ANY_TREE: Final = TreeLimits()
_SOILING: Final = frozenset(
    (End.TIMED_OUT, End.OUT_OF_MEMORY, End.PROCESS_LIMIT, End.DISK_FULL, End.FILE_LIMIT, End.OUTPUT_LIMIT, End.CANCELED)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """An exec that has ended and all that it wrote."""

    result: ExecResult
    stdout: bytes
    stderr: bytes


class Sandbox:
    """A running sandbox. Life cycle: a runtime's box → many execs and transfers → ``stop``.

    Any number of operations may run at once. Attributes:
        soiled: something happened after which it must not be given to anybody else.
    """

    def __init__(self, box: Box) -> None:
        self._box = box
        self._link = box.link
        self._work_path = box.link.setup.work_path
        self._events = LimitEvents()
        self._soiled = False
        self._new_after = -1  # the stream after which it was as good as new

    @property
    def spec(self) -> SandboxSpec:
        return self._box.spec

    @property
    def box(self) -> Box:
        """What its runtime started, for that runtime."""
        return self._box

    @property
    def host_pid(self) -> int:
        """Process id on this host of what the runtime started; 0 when that is no process of this kernel's."""
        return int(getattr(self._box, "pid", 0))

    @property
    def soiled(self) -> bool:
        return self._soiled or self._link.lost is not None

    @property
    def as_new(self) -> bool:
        """True when its last exec was followed by a reset (``ExecRequest.reset_after``) and nothing came after."""
        return self._new_after == self._link.last_stream and not self.soiled

    @property
    def lost(self) -> SandboxLost | None:
        """Why the sandbox is gone, or None while it answers."""
        return self._link.lost

    async def wait_lost(self) -> None:
        """Return when the sandbox is gone for any reason. Cancellation: safe."""
        await self._link.wait_lost()

    async def exec(
        self, request: ExecRequest, *, stdin: Stdin | None = None, on_output: OutputSink | None = None
    ) -> ExecResult:
        """Run a command and wait for its end, whatever that is; without a sink its output is thrown away.

        Raises:
            InvalidSpec: the request itself is malformed.
            SandboxLost: the sandbox died under us; nothing is known about the command.
        Cancellation: kills the process tree before CancelledError leaves this call.
        """
        execution = self.start_nowait(request, stdin=stdin is not None)
        try:
            if stdin is None:
                result = await _consume(execution, on_output)
            elif isinstance(stdin, bytes) and len(stdin) <= protocol.WINDOW_BYTES:
                await execution.write_stdin(stdin)  # fits the window: does not wait
                execution.close_stdin()
                result = await _consume(execution, on_output)
            else:
                result = await _consume_while_feeding(execution, stdin, on_output)
            if result.reset:
                self._new_after = self._link.last_stream
            return result
        finally:
            if execution.result is None and self._link.lost is None:
                await finish(execution.kill_and_wait(), within_s=_CLEANUP_WITHIN_S)

    async def start(self, request: ExecRequest, *, stdin: bool = True) -> Execution:
        """Start an interactive exec; the caller reads it to its end, or kills it.

        Raises:
            InvalidSpec, SandboxLost: as for ``exec``. A command that cannot start is a result: NOT_STARTED.
        """
        return self.start_nowait(request, stdin=stdin)

    def start_nowait(self, request: ExecRequest, *, stdin: bool) -> Execution:
        """As ``start``; the request leaves at once."""
        if mistakes := _mistakes(request):
            raise InvalidSpec(mistakes[0], mistakes=mistakes)
        if self._work_path != WORK:
            env = tuple((name, self._placed(value)) for name, value in request.env)
            request = replace(request, cwd=self._placed(request.cwd), env=env)
        return Execution(self._link, request, stdin=stdin, judge=self._judge, coroner=self._last_words)

    def _placed(self, path: str) -> str:
        """Where a path lies for the agent: a box without mounts of its own has another folder for /work."""
        if self._work_path == WORK or not (path == WORK or path.startswith(f"{WORK}/")):
            return path
        return self._work_path + path.removeprefix(WORK)

    async def run(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: Stdin | None = None,
        timeout_s: float | None = None,
        output_bytes_max: int = 16 * MIB,
    ) -> Completed:
        """Run a command and keep what it writes, up to a bound. Raises and cancellation: as for ``exec``."""
        output: dict[Channel, bytearray] = {1: bytearray(), 2: bytearray()}
        request = ExecRequest(
            argv=argv,
            env=tuple((env or {}).items()),
            cwd=cwd,
            timeout_s=timeout_s,
            output_bytes_max=output_bytes_max,
        )
        result = await self.exec(request, stdin=stdin, on_output=lambda channel, data: output[channel].extend(data))
        return Completed(result=result, stdout=bytes(output[1]), stderr=bytes(output[2]))

    async def write_file(self, path: str, content: bytes | AsyncIterable[bytes], *, executable: bool = False) -> None:
        """Write one file at an absolute path; its directory is made when missing, an existing file is replaced.

        Raises:
            InvalidSpec: the path is refused.
            TooLarge: the folder is full.
            SandboxLost: the sandbox died.
        Cancellation: the file is not there, or not complete.
        """
        directory, name = posixpath.split(path)
        size = len(content) if isinstance(content, bytes) else protocol.SIZE_UNKNOWN
        entry = TreeEntry(path=name, kind=EntryKind.FILE, size_bytes=size, executable=executable)
        await self.write_tree(directory or "/", _one(entry, content))

    async def write_tree(self, directory: str, entries: Entries, limits: TreeLimits = _ANY_TREE) -> tuple[int, int]:
        """Write a tree below ``directory``; (entries, bytes) written. See ``put_tree`` in ``link.files``."""
        _check_path(directory)
        return await files.put_tree(self._link, self._placed(directory), entries, limits)

    async def read_file(self, path: str, *, file_bytes: int = _ANY_TREE.file_bytes) -> AsyncIterator[bytes]:
        """The content of one regular file.

        Raises:
            NotFound: nothing is there.
            InvalidSpec: it is not a regular file.
            TooLarge: it is larger than ``file_bytes``.
        """
        limits = TreeLimits(total_bytes=file_bytes, file_bytes=file_bytes, entries=1, depth=1)
        async with aclosing(self._read_tree(path, limits)) as tree:
            async for entry, content in tree:
                if entry.path or entry.kind is not EntryKind.FILE:
                    break
                async for data in content:
                    yield data
                return
        raise InvalidSpec(f"{path!r} is not a regular file")

    def read_tree(
        self, path: str, limits: TreeLimits = _ANY_TREE
    ) -> AsyncIterator[tuple[TreeEntry, AsyncIterator[bytes]]]:
        """What is at ``path``. See ``get_tree`` in ``link.files``."""
        return self._read_tree(path, limits)

    def _read_tree(self, path: str, limits: TreeLimits) -> AsyncGenerator[tuple[TreeEntry, AsyncIterator[bytes]], None]:
        _check_path(path)
        return files.get_tree(self._link, self._placed(path), limits)

    async def stat(self, path: str) -> TreeEntry:
        """The entry at ``path``, a symlink not followed. Raises NotFound; InvalidSpec for devices and the like."""
        _check_path(path)
        return await files.stat(self._link, self._placed(path))

    async def space(self, path: str) -> Space:
        """Free and total space of the folder. Raises NotFound."""
        _check_path(path)
        return await files.space(self._link, self._placed(path))

    async def ping(self) -> None:
        """One round trip to the agent. Raises SandboxLost."""
        await self._link.ping()

    async def reset(self) -> bool:
        """Make it as good as new: no leftover process, empty folders. False when that did not work: destroy it.

        Raises:
            SandboxLost: the sandbox died.
        """
        clean, _ = await self._link.reset()
        self._soiled = self._soiled or not clean
        return clean

    async def stop(self) -> None:
        """Kill everything in it and free what it owns; idempotent."""
        await self._box.stop()

    async def _judge(self, result: ExecResult, tainted: bool) -> ExecResult:
        """Find out whether a limit of the sandbox is why an exec ended badly. Never on the clean path."""
        if tainted:
            self._soiled = True
        if result.end in (End.EXITED, End.SIGNALED) and result.exit_status != 0:
            result = self._by_events(result) or await self._by_space(result) or result
        if result.end in _SOILING:
            self._soiled = True
        return result

    def _by_events(self, result: ExecResult) -> ExecResult | None:
        before, self._events = self._events, self._box.limit_events_nowait()
        if self._events.out_of_memory > before.out_of_memory:
            return replace(result, end=End.OUT_OF_MEMORY, message="the sandbox used all the memory that it may have")
        if self._events.process_limit > before.process_limit:
            return replace(result, end=End.PROCESS_LIMIT, message="the sandbox has all the processes that it may have")
        return None

    def _last_words(self) -> ExecResult | None:
        """A limit that took the whole sandbox: gVisor's kernel is itself a process in the group."""
        events = self._box.limit_events_nowait()
        if events.out_of_memory > self._events.out_of_memory:
            end, what = End.OUT_OF_MEMORY, "memory"
        elif events.process_limit > self._events.process_limit:
            end, what = End.PROCESS_LIMIT, "processes"
        else:
            return None
        message = f"the sandbox used all the {what} that it may have, and ended with everything in it"
        return ExecResult(end=end, signal=signal.SIGKILL, message=message, left_processes=True)

    async def _by_space(self, result: ExecResult) -> ExecResult | None:
        for folder in self._link.setup.writable:
            try:
                space = await self.space(folder)
            except NotFound:
                continue  # a folder of the host that its owner removed
            if space.free_bytes == 0 and space.total_bytes:
                return replace(result, end=End.DISK_FULL, message=f"{folder} is full")
            if space.files_free == 0 and space.files_total:
                return replace(result, end=End.FILE_LIMIT, message=f"{folder} has all the files that it may have")
        return None


async def _consume(execution: Execution, on_output: OutputSink | None) -> ExecResult:
    if on_output is not None:
        while (chunk := await execution.wait_output()) is not None:
            if (waiting := on_output(*chunk)) is not None:
                await waiting
    return await execution.wait()


async def _consume_while_feeding(execution: Execution, stdin: Stdin, on_output: OutputSink | None) -> ExecResult:
    try:
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(_feed(execution, stdin), name="stdin")
            result = await _consume(execution, on_output)
            feeding.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the group is ours, its first failure is the caller's
    return result


async def _feed(execution: Execution, stdin: Stdin) -> None:
    if isinstance(stdin, bytes):
        await execution.write_stdin(stdin)
    else:
        async for data in stdin:
            await execution.write_stdin(data)
    execution.close_stdin()


async def _one(
    entry: TreeEntry, content: bytes | AsyncIterable[bytes]
) -> AsyncIterator[tuple[TreeEntry, AsyncIterable[bytes]]]:
    yield entry, _pieces(content) if isinstance(content, bytes) else content


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise InvalidSpec(f"{path!r} is not an absolute path")


def _mistakes(request: ExecRequest) -> tuple[str, ...]:
    mistakes = []
    if not request.argv or not request.argv[0]:
        mistakes.append("the command is empty")
    if any("\0" in argument for argument in request.argv):
        mistakes.append("an argument contains a NUL")
    for name, value in request.env:
        if not name or "=" in name or "\0" in name or "\0" in value:
            mistakes.append(f"the environment variable {name!r} has an impossible name or value")
    if not request.cwd.startswith("/") or "\0" in request.cwd:
        mistakes.append(f"the working directory {request.cwd!r} is not an absolute path")
    if request.timeout_s is not None and request.timeout_s <= 0:
        mistakes.append("the time limit is not positive")
    if request.output_bytes_max is not None and request.output_bytes_max < 0:
        mistakes.append("the output limit is negative")
    return tuple(mistakes)
