"""One exec as the host sees it: output out, input in, exactly one end.

The timers live here and not in the callers: a consumer that stalls delays neither a time limit nor a kill.
"""

import asyncio
import contextlib
import signal as signals
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Literal

from corral.kernel.errors import SandboxLost
from corral.kernel.units import format_duration, format_size
from corral.sandboxes.link import protocol
from corral.sandboxes.link.link import Link
from corral.sandboxes.link.protocol import Exit, Frame, NotStarted, ProtocolError
from corral.sandboxes.model import End, ExecRequest, ExecResult, TerminalSize

Channel = Literal[1, 2]
Output = tuple[Channel, bytes]
Judge = Callable[[ExecResult, bool], Awaitable[ExecResult]]
Coroner = Callable[[], ExecResult | None]
"""How an exec ended whose whole sandbox is gone, when that is known."""

_KILL_PATIENCE_S: Final = 15.0
"""The agent gives up on unkillable processes after 10 s; one that has not answered after this is lost itself."""


class Execution:
    """A running exec. Read :meth:`output` or call :meth:`wait`, from one task at a time; the rest from anywhere.

    Attributes:
        request: what was asked.
        pid: of the command inside the sandbox, once the agent told it; 0 before.
    """

    def __init__(self, link: Link, request: ExecRequest, *, stdin: bool, judge: Judge, coroner: Coroner) -> None:
        self.request = request
        self.pid = 0
        self._link = link
        self._judge = judge
        self._coroner = coroner
        self._forced: End | None = None
        self._sent_bytes = 0
        self._result: ExecResult | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._stream = link.open_stream(protocol.T_EXEC, protocol.encode_exec(request, stdin=stdin))
        if request.timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(request.timeout_s, self._force, End.TIMED_OUT))

    @property
    def result(self) -> ExecResult | None:
        """How it ended, or None while that is not known."""
        return self._result

    async def output(self) -> AsyncIterator[Output]:
        """Output in order of arrival, (1, bytes) for stdout and (2, bytes) for stderr, until the exec has ended.

        Not reading is back-pressure: the command blocks on its full pipe, nobody else does.

        Raises:
            SandboxLost: the sandbox died under us; nothing is known about the command.
        """
        while (chunk := await self.wait_output()) is not None:
            yield chunk

    async def wait_output(self) -> Output | None:
        """The next piece of output, None at the end. Raises SandboxLost. Cancellation: safe, nothing is lost."""
        while self._result is None:
            try:
                frame = await self._stream.wait_frame()
            except SandboxLost:
                self._stop_timers()
                self._result = self._coroner()
                if self._result is None:
                    raise
                return None
            try:
                if frame.type in (protocol.T_STDOUT, protocol.T_STDERR):
                    if (chunk := self._on_output(frame)) is not None:
                        return chunk
                    continue  # beyond the output limit: cut
                if (result := self._on_end(frame)) is not None:
                    self._stop_timers()
                    ended, tainted = result
                    self._result = ended if ended.ok and not tainted else await self._judge(ended, tainted)
            except ProtocolError as error:
                self._stop_timers()
                raise self._link.broken(error) from error
        return None

    async def wait(self) -> ExecResult:
        """Discard what output is left and tell how the exec ended. Raises SandboxLost. Cancellation: safe."""
        while await self.wait_output() is not None:
            pass
        assert self._result is not None
        return self._result

    async def write_stdin(self, data: bytes) -> None:
        """Send input; waits while the command does not read. What comes after the end is dropped, as by a pipe.

        Cancellation: may have sent some.
        """
        view = memoryview(data)
        while view and (credit := await self._stream.wait_credit()):
            piece = view[: min(credit, protocol.DATA_BYTES_MAX)]
            self._stream.send_counted(protocol.T_STDIN, bytes(piece))
            view = view[len(piece) :]

    def close_stdin(self) -> None:
        """End of input; on a terminal this types Ctrl-D."""
        self._stream.send(protocol.T_STDIN_END)

    def signal(self, number: int) -> None:
        """Send a signal to the command and all its descendants."""
        self._stream.send(protocol.T_SIGNAL, bytes((number,)))

    def resize(self, size: TerminalSize) -> None:
        """Change the terminal's window size."""
        self._stream.send(protocol.T_WINDOW, protocol.encode_window(size))

    def kill(self, *, grace_s: float | None = None) -> None:
        """Have the whole tree killed: SIGTERM, after ``grace_s`` (the sandbox's own when None) SIGKILL.

        Returns at once; the exec's end is CANCELED unless it ended before.
        """
        self._force(End.CANCELED, grace_s)

    async def kill_and_wait(self, *, grace_s: float = 0.0) -> None:
        """Kill the tree and wait until nothing of it is left. A lost sandbox counts: its agent took all with it."""
        self.kill(grace_s=grace_s)
        with contextlib.suppress(SandboxLost):
            await self.wait()

    def _force(self, end: End, grace_s: float | None = None) -> None:
        if self._stream.ended:
            return
        self._forced = self._forced or end
        grace = protocol.GRACE_DEFAULT if grace_s is None else round(grace_s * 1000)
        self._stream.send(protocol.T_KILL, protocol.encode_u32(grace))
        patience_s = _KILL_PATIENCE_S + (self._link.setup.grace_s if grace_s is None else grace_s)
        self._timers.append(asyncio.get_running_loop().call_later(patience_s, self._give_up))

    def _give_up(self) -> None:
        self._link.fail("the agent did not confirm that an exec was killed")

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _on_output(self, frame: Frame) -> Output | None:
        channel: Channel = 1 if frame.type == protocol.T_STDOUT else 2
        data, limit = frame.payload, self.request.output_bytes_max
        if limit is not None and self._sent_bytes + len(data) > limit:
            data = data[: limit - self._sent_bytes]
            if self._forced is None:
                self._force(End.OUTPUT_LIMIT, 0.0)
                self._forced = End.OUTPUT_LIMIT  # also when it has ended by itself meanwhile: output was cut
        self._sent_bytes += len(data)
        return (channel, data) if data else None

    def _on_end(self, frame: Frame) -> tuple[ExecResult, bool] | None:
        if frame.type == protocol.T_EXIT:
            exit_ = protocol.decode_exit(frame.payload)
            tainted = exit_.left_processes or exit_.killed or exit_.survivors or exit_.keeper_lost
            return self._ended(exit_), tainted
        if frame.type == protocol.T_NOT_STARTED:
            refusal: NotStarted = protocol.decode_not_started(frame.payload)
            return ExecResult(end=End.NOT_STARTED, message=refusal.message), False
        if frame.type in (protocol.T_STDOUT, protocol.T_STDERR):
            return None  # output beyond the limit, on its way when the kill was sent
        if frame.type != protocol.T_STARTED:
            raise ProtocolError(f"a frame of type {frame.type} in an exec")
        self.pid = protocol.decode_u32(frame.payload)
        return None

    def _ended(self, exit_: Exit) -> ExecResult:
        end = End.EXITED if exit_.signal is None else End.SIGNALED
        if exit_.out_of_memory or exit_.process_limit:
            end = End.OUT_OF_MEMORY if exit_.out_of_memory else End.PROCESS_LIMIT
        if self._forced is End.OUTPUT_LIMIT or (self._forced is not None and exit_.killed):
            end = self._forced
        return ExecResult(
            end=end,
            exit_status=exit_.status,
            signal=exit_.signal,
            message=self._sentence(end, exit_),
            usage=exit_.usage,
            left_processes=exit_.left_processes or exit_.survivors or exit_.keeper_lost,
            reset=exit_.reset and self._link.last_stream == self._stream.id,  # nothing else was begun meanwhile
        )

    def _sentence(self, end: End, exit_: Exit) -> str:
        if end is End.TIMED_OUT:
            return f"it did not end within {format_duration(self.request.timeout_s or 0)}, so it was killed"
        if end is End.OUTPUT_LIMIT:
            return f"it wrote more than {format_size(self.request.output_bytes_max or 0)} of output, so it was killed"
        if end is End.CANCELED:
            return "it was canceled"
        if end is End.OUT_OF_MEMORY:
            return "the sandbox used all the memory that it may have"
        if end is End.PROCESS_LIMIT:
            return "the sandbox has all the processes that it may have"
        if exit_.keeper_lost:
            return "something in the sandbox killed the process that watches over it"
        return f"it was killed by {signal_name(exit_.signal)}" if exit_.signal is not None else ""


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; ``signal 200`` for what has no name here."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
