"""The progress of one preparation: a line that is drawn over itself on a terminal, a few lines elsewhere."""

import shutil
import sys
from typing import Final

from corral.cli.output import safe_text
from corral.images.model import Progress
from corral.kernel.units import format_size

_WIDTH: Final = 24


class Bar:
    """On stderr; nothing when not enabled."""

    def __init__(self, name: str, *, enabled: bool) -> None:
        self._name = safe_text(name)
        self._drawn = enabled and sys.stderr.isatty()
        self._told = enabled and not sys.stderr.isatty()
        self._place = ("", 0)

    def show(self, progress: Progress) -> None:
        """Draw it anew."""
        if self._told and (progress.stage, progress.layer) != self._place:
            self._place = (progress.stage, progress.layer)
            sys.stderr.write(f"{self._name}: {words(progress)}\n")
        if self._drawn:
            part = progress.done_bytes / progress.total_bytes if progress.total_bytes else 0.0
            filled = round(min(part, 1.0) * _WIDTH)
            line = f"{self._name} [{'█' * filled}{'░' * (_WIDTH - filled)}] {words(progress)}"
            sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()

    def close(self) -> None:
        """Leave the line."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def words(progress: Progress) -> str:
    """Such as ``unpacking, layer 2 of 5, 3 MiB of 12 MiB``."""
    layer = f", layer {progress.layer} of {progress.layers}" if progress.layer else ""
    size = (
        f", {format_size(progress.done_bytes)} of {format_size(progress.total_bytes)}" if progress.total_bytes else ""
    )
    return f"{progress.stage}{layer}{size}"
