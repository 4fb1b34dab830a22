"""One status line on stderr, only on a terminal: what we wait for, with a spinner. The log goes above it."""

import sys
from typing import Any

from corral.cli.output import console, note, safe_text
from corral.client import Progress, TaskView
from corral.kernel.units import format_size


class Status:
    """The line. Without a terminal only what is :meth:`told` is shown; when disabled, nothing is."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._terminal = enabled and sys.stderr.isatty()
        self._live: Any = None

    def show(self, text: str) -> None:
        """Replace the line."""
        if not self._terminal:
            return
        if self._live is None:
            self._live = console(stderr=True).status(safe_text(text), spinner="dots")
            self._live.start()
        else:
            self._live.update(safe_text(text))

    def told(self, text: str) -> None:
        """Show on a terminal; say once, as a line, when there is none."""
        if self._terminal:
            self.show(text)
        elif self._enabled:
            note("", text)

    def remark(self, text: str) -> None:
        """Say once, as a line that stays."""
        if self._enabled:
            self.close()
            note("", text)

    def close(self) -> None:
        """Take the line away; it may be shown again."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def progress_text(progress: Progress) -> str:
    """An upload for people."""
    return f"uploading {progress.name}: {progress.blobs_sent} new files, {format_size(progress.bytes_sent)} sent"


def waiting_text(task: TaskView, reasons: tuple[str, ...]) -> str:
    """Where a task stands, for the status line."""
    run = task.last_run
    if task.phase.value == "running":
        if run is not None and run.started_s is not None:
            return f"{task.id} running on {run.worker}"
        return f"{task.id} starting on {run.worker if run else '?'}"
    reason = f": {reasons[0]}" if reasons else ""
    return f"{task.id} {task.phase.value}{reason}"
