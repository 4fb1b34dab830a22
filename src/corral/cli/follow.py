"""Follow a task to its end: its log on stdout, where it stands on the status line."""

import asyncio
import sys
from contextlib import aclosing, suppress
from typing import Final

from corral.cli.output import PARTIAL, note, safe_bytes
from corral.cli.status import Status, waiting_text
from corral.client import Corral, TaskView
from corral.kernel.concurrency import background
from corral.kernel.errors import CorralError, NotFound

_WHY_EVERY_S: Final = 1.5
_TAIL_BYTES: Final = 8192


class Follower:
    """Writes logs to stdout (to stderr with ``to_stderr``), made harmless when that is a terminal and not ``raw``."""

    def __init__(self, status: Status, *, raw: bool = False, to_stderr: bool = False) -> None:
        self.status = status
        self._out = sys.stderr if to_stderr else sys.stdout
        self._safe = not raw and self._out.isatty()
        self._partial = b""
        self._tail = b""

    def showed(self, sentence: str) -> bool:
        """True when the log on this terminal ends with Corral's own line of this sentence."""
        return self._out.isatty() and f"[corral:error] {sentence}\n".encode() in self._tail

    async def follow(self, corral: Corral, task: TaskView) -> TaskView:
        """Wait for the task to be final while its runs' logs are written; the task at its end."""
        shown_run = -1
        while True:
            task = await self._until_claimed(corral, task)
            run = task.last_run
            if run is not None and run.run > shown_run and run.worker:
                if shown_run >= 0:
                    note("", f"run {shown_run} ended without a result; this is run {run.run}")
                shown_run = run.run
                self.status.show(waiting_text(task, ()))
                await self.copy_log(corral, task.id, run.run, follow=True)
            if task.phase.final:
                return task
            task = await corral.tasks.wait_changed(task)

    async def copy_log(self, corral: Corral, task_id: str, run: int, *, offset: int = 0, follow: bool = False) -> None:
        """Write one run's log."""
        try:
            async with aclosing(corral.logs.read(task_id, run, offset=offset, follow=follow)) as pieces:
                async for piece in pieces:
                    self.status.close()
                    self._write(piece)
        except NotFound:
            return  # forgotten meanwhile, or never written
        finally:
            self._write(b"", last=True)

    async def _until_claimed(self, corral: Corral, task: TaskView) -> TaskView:
        """Wait while no worker has the newest run, telling why."""
        if not _waits(task):
            return task
        async with background(self._tell_why(corral, task), name="why"):
            while _waits(task):
                task = await corral.tasks.wait_changed(task)
        return task

    async def _tell_why(self, corral: Corral, task: TaskView) -> None:
        """On the status line all the time; as a line that stays once, when it takes longer than usual."""
        self.status.show(waiting_text(task, ()))
        told: tuple[str, ...] = ()
        while True:
            await asyncio.sleep(_WHY_EVERY_S)
            with suppress(CorralError):  # it is only decoration; the wait itself reports errors
                reasons = (await corral.tasks.why(task.id)).reasons
                if reasons and not told:
                    told = reasons[:1]
                    self.status.remark(f"{reasons[0]} See `corral why {task.id}`.")
                self.status.show(waiting_text(task, reasons[:1] if reasons[:1] != told else ()))

    def _write(self, piece: bytes, *, last: bool = False) -> None:
        if self._safe:
            piece, self._partial = self._partial + piece, b""
            if not last and (match := PARTIAL.search(piece)):
                piece, self._partial = piece[: match.start()], match[0]
            piece = safe_bytes(piece)
        self._tail = (self._tail + piece)[-_TAIL_BYTES:]
        self._out.buffer.write(piece)
        self._out.flush()


def _waits(task: TaskView) -> bool:
    run = task.last_run
    return not task.phase.final and (run is None or not run.worker)
