"""Plugin ``watchdog``: a worker that makes no progress is stopped, and says where it stood.

Every hook of every run, and every idle moment, is progress. While a command runs, nothing is expected of the worker
(``maxruntime`` bounds that), so the watchdog rests while any run is between ``started`` and ``stopped``.
"""

import asyncio
import io
import sys
import traceback
from typing import Any

import msgspec
import structlog

from corral.kernel.clock import Clock
from corral.kernel.units import format_duration
from corral.sandboxes.model import ExecResult
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.model import Phase, Reason
from corral.tasks.plugin import ExecDraft, Plugin, RunContext, TaskPlugin, WorkerControls

_log = structlog.get_logger(__name__)


class WatchdogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``silent_s`` without progress stops the worker."""

    silent_s: float = 45 * 60.0

    def __post_init__(self) -> None:
        if self.silent_s < 1:
            raise ValueError("silent_s must be at least 1 second")


class WatchdogPlugin(Plugin):
    """Watches one worker."""

    name = "watchdog"

    def __init__(self, clock: Clock, config: WatchdogConfig | None = None) -> None:
        self._clock = clock
        self._silent_s = (config or WatchdogConfig()).silent_s
        self._progress_s = clock.monotonic_s()
        self._commands = 0

    def attach(self, run: RunContext, fields: Any) -> TaskPlugin:
        self.progress()
        return _Watched(self)

    def idle(self, idle_s: float) -> None:
        self.progress()

    def progress(self) -> None:
        """Something moved."""
        self._progress_s = self._clock.monotonic_s()

    def command_runs(self, by: int) -> None:
        """A command was started (1) or ended (-1)."""
        self._commands += by
        self.progress()

    async def serve(self, controls: WorkerControls) -> None:
        self.progress()
        while True:
            left_s = self._progress_s + self._silent_s - self._clock.monotonic_s()
            if left_s > 0 or self._commands:
                await asyncio.sleep(max(left_s, min(self._silent_s, 60.0)) if self._commands else left_s)
                continue
            why = f"nothing moved for {format_duration(self._silent_s)}"
            _log.error("watchdog stops the worker", why=why, stacks=stacks())
            controls.stop_now(why)
            return


class _Watched(TaskPlugin):
    takes_out = False

    def __init__(self, watchdog: WatchdogPlugin) -> None:
        self._watchdog = watchdog
        self._runs = False

    def build(self, draft: ExecDraft) -> None:
        self._watchdog.progress()

    def start(self, sandbox: Sandbox) -> None:
        self._watchdog.progress()

    def started(self) -> None:
        self._runs = True
        self._watchdog.command_runs(1)

    def stopped(self, result: ExecResult, sandbox: Sandbox) -> bool:
        self._ended()
        return True

    def finished(self, phase: Phase) -> None:
        self._watchdog.progress()

    def exception(self, reason: Reason) -> None:
        self._ended()

    def _ended(self) -> None:
        if self._runs:
            self._runs = False
            self._watchdog.command_runs(-1)
        self._watchdog.progress()


def stacks() -> str:
    """Where every thread and every asyncio task of this process stands."""
    text = io.StringIO()
    for thread, frame in sys._current_frames().items():
        text.write(f"thread {thread}\n{''.join(traceback.format_stack(frame))}")
    for task in asyncio.all_tasks():
        text.write(f"task {task.get_name()}\n")
        task.print_stack(file=text)
    return text.getvalue()
