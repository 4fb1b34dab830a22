"""Plugin ``livelog``: the log of a run, readable while it is written.

Bytes are sent at most ``flush_s`` after they were written, or as soon as ``flush_bytes`` have come together. A command
that writes faster than the log can be stored waits: at most ``buffer_bytes`` are in memory. A run that writes nothing
opens nothing. One background loop serves all runs of the worker, and sleeps while no run writes.
"""

import asyncio
from typing import Any, Final

import msgspec
import structlog

from corral.fleet.model import RunRef
from corral.kernel.errors import CallerError, CorralError
from corral.kernel.units import format_size
from corral.sandboxes.model import End, ExecResult
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.plugin import ExecDraft, Plugin, RunContext, TaskPlugin, WorkerControls
from corral.tasks.ports import LogSink

_log = structlog.get_logger(__name__)
_PIECE_BYTES: Final = 256 * 1024


class LiveLogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How logs travel. A command that writes more than ``log_bytes_max`` is killed and the run fails."""

    flush_s: float = 0.1
    flush_bytes: int = 64 * 1024
    buffer_bytes: int = 1024 * 1024
    log_bytes_max: int = 1024**3

    def __post_init__(self) -> None:
        if not 0.001 <= self.flush_s <= 10:
            raise ValueError("flush_s must be between 1ms and 10s")
        if not 0 < self.flush_bytes <= self.buffer_bytes:
            raise ValueError("flush_bytes must be above 0 and at most buffer_bytes")
        if self.log_bytes_max < 1:
            raise ValueError("log_bytes_max must be at least 1")


class LiveLogPlugin(Plugin):
    """Carries the log of every run to a sink."""

    name = "livelog"

    def __init__(self, sink: LogSink, config: LiveLogConfig | None = None) -> None:
        self._sink = sink
        self._config = config or LiveLogConfig()
        self._unsent: set[Shipper] = set()
        self._written = asyncio.Event()
        self._urgent = asyncio.Event()

    def attach(self, run: RunContext, fields: Any) -> TaskPlugin | None:
        run.log.attach(Shipper(self._sink, run.claim.ref, self))
        return _Limit(run, self._config.log_bytes_max)

    @property
    def config(self) -> LiveLogConfig:
        """How logs travel."""
        return self._config

    def mark_unsent(self, shipper: "Shipper", *, urgent: bool) -> None:
        """``shipper`` holds bytes."""
        if shipper not in self._unsent:
            self._unsent.add(shipper)
            self._written.set()
        if urgent:
            self._urgent.set()

    def forget(self, shipper: "Shipper") -> None:
        """``shipper`` sends the rest itself."""
        self._unsent.discard(shipper)

    async def serve(self, controls: WorkerControls) -> None:
        while True:
            await self._written.wait()
            try:
                async with asyncio.timeout(self._config.flush_s):
                    await self._urgent.wait()
            except TimeoutError:
                pass  # nothing was urgent: flush_s have passed, which is what we waited for
            self._written.clear()
            self._urgent.clear()
            shippers, self._unsent = self._unsent, set()
            async with asyncio.TaskGroup() as group:
                for shipper in shippers:
                    group.create_task(shipper.send())


class Shipper:
    """The outlet of one run's log: gathers bytes, sends them in order, remembers how far it came."""

    def __init__(self, sink: LogSink, ref: RunRef, plugin: LiveLogPlugin) -> None:
        self._sink = sink
        self._ref = ref
        self._plugin = plugin
        self._buffer = bytearray()
        self._offset = 0
        self._sending = asyncio.Lock()
        self._failure: CorralError | None = None

    def write(self, data: bytes) -> Any:
        """Gather bytes; gives something to await when the buffer is full."""
        if self._failure is not None:
            return None  # told when the log is closed; until then the command need not suffer
        self._buffer += data
        size = len(self._buffer)
        config = self._plugin.config
        if size >= config.buffer_bytes:
            return self.send()
        self._plugin.mark_unsent(self, urgent=size >= config.flush_bytes)
        return None

    async def send(self) -> None:
        """Send what is gathered. Never raises CorralError: the first one is kept for :meth:`close`.

        Cancellation: some may have been sent; it will be sent again at the same offset, which changes nothing.
        """
        async with self._sending:
            while self._buffer and self._failure is None:
                piece = bytes(memoryview(self._buffer)[:_PIECE_BYTES])
                try:
                    await self._sink.append(self._ref, self._offset, piece)
                except CorralError as error:
                    self._failure = error
                    self._buffer.clear()
                    _log.warning("log lost", task=self._ref.task_id, run=self._ref.run, error=str(error))
                else:
                    self._offset += len(piece)
                    del self._buffer[: len(piece)]

    async def close(self) -> None:
        """Send the rest and end the log. Raises: DependencyError."""
        self._plugin.forget(self)
        await self.send()
        if self._failure is not None:
            if isinstance(self._failure, CallerError):
                return  # Conflict: the run is no longer ours, so neither is its log; the report will hear the same
            raise self._failure
        if self._offset:
            await self._sink.close(self._ref, self._offset)


class _Limit(TaskPlugin):
    takes_out = False

    def __init__(self, run: RunContext, log_bytes_max: int) -> None:
        self._run = run
        self._log_bytes_max = log_bytes_max

    def build(self, draft: ExecDraft) -> None:
        draft.output_bytes_max = self._log_bytes_max

    def stopped(self, result: ExecResult, sandbox: Sandbox) -> bool:
        if result.end is not End.OUTPUT_LIMIT:
            return True
        sentence = f"the command was killed because it wrote more than {format_size(self._log_bytes_max)} of output"
        self._run.say(sentence)
        self._run.log.error(sentence)
        return False
