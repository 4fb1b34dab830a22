"""Files that appear whole: written beside their target, then renamed over it.

The target becomes a new file, as when a compiler writes it: another name of the old one keeps its old content.
"""

import contextlib
import fcntl
import itertools
import os
from typing import Final

_FICLONE: Final = 0x40049409  # linux/fs.h
_names: Final = itertools.count()


def new_file(target: str, data: bytes, *, mode: int) -> None:
    """Make ``target`` with this content and exactly this mode. Raises OSError; nothing is left then."""
    fresh = _beside(target)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        os.rename(fresh, target)
    except OSError:
        _forget(fresh)
        raise


def clone(source: str, target: str, *, mode: int, link: bool = False) -> None:
    """Make ``target`` a copy of ``source`` that shares its blocks where the file system can do that.

    With ``link`` it becomes another name of the same file, where that is possible; its mode is then the source's.
    Raises OSError; nothing is left then.
    """
    fresh = _beside(target)
    if link:
        with contextlib.suppress(OSError):
            os.link(source, fresh)
            os.rename(fresh, target)
            _forget(fresh)  # rename does nothing when both are names of one file
            return
    try:
        reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            writing = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            try:
                os.fchmod(writing, mode)
                _copy(reading, writing)
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        os.rename(fresh, target)
    except OSError:
        _forget(fresh)
        raise


def _copy(reading: int, writing: int) -> None:
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError:
        size = os.fstat(reading).st_size
        copy = os.copy_file_range
        while size > 0:
            try:
                copied = copy(reading, writing, size)
            except OSError:  # another file system, on older kernels
                if copy is not os.copy_file_range:
                    raise
                copied = os.sendfile(writing, reading, None, size)
            if not copied:
                break
            size -= copied
        if size:
            raise OSError(5, "the stored object is shorter than it was") from None


def _beside(target: str) -> str:
    directory, slash, name = target.rpartition("/")
    return f"{directory}{slash}.{name[:200]}.corral-{os.getpid()}-{next(_names)}"


def _forget(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
