"""The folder in which a guest kit is built, beside the kits: a kernel's source takes gigabytes, and must not stay.

Whoever builds holds a lock on the folder, and every program that it starts inherits the lock. The kernel frees a lock
with its last holder, so the next build knows which folders nobody works in any more, also after SIGKILL.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.kernel.errors import InvalidSpec

_PREFIX: Final = ".build-"


@dataclass(frozen=True, slots=True)
class Workspace:
    """An empty folder, and the descriptor whose lock says that it is in use: pass it to programs that work there."""

    folder: Path
    lock: int


@contextmanager
def workspace(kits: Path) -> Iterator[Workspace]:
    """A folder below ``kits`` until the block ends. Folders of builds that were killed are removed first.

    Raises InvalidSpec when there can be none.
    """
    try:
        kits.mkdir(mode=0o755, parents=True, exist_ok=True)
        for leftover in kits.glob(f"{_PREFIX}*"):
            _remove_unused(leftover)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=kits))
    except OSError as error:
        raise InvalidSpec(f"no guest kit can be built in {kits}: {error.strerror}") from error
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Workspace(folder, lock)
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)  # what a program that still ends writes there, the next build removes


def _remove_unused(folder: Path) -> None:
    with suppress(FileNotFoundError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            pass  # somebody builds in it
        finally:
            os.close(lock)
