"""Programs as descriptors: unchangeable copies in memory, executable whoever runs them and wherever they lie.

A box runs as a user who may not even reach the directory in which Corral is installed, and no box must be able to
alter what the next one executes.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

_MFD_EXEC: Final = 0x10  # linux/memfd.h, since 6.3: executable although the machine's default may be "not"
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def sealed_copy(file: Path) -> int:
    """A close-on-exec descriptor of an unchangeable copy of ``file``; of the file itself where memory may not execute.

    Raises OSError when the file cannot be read.
    """
    content = file.read_bytes()
    try:
        descriptor = _new_memory(file.name)
    except PermissionError:  # vm.memfd_noexec=2
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    while content:
        content = content[os.write(descriptor, content) :]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def _new_memory(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_EXEC)
    except PermissionError:
        raise
    except OSError:  # EINVAL: a kernel that does not know the flag, and that lets everything execute
        return os.memfd_create(name, flags)


def reachable(path: Path, *, uid: int, gid: int) -> bool:
    """Whether this user (without further groups) may pass through every directory above ``path``."""
    for directory in path.resolve().parents:
        status = directory.stat()
        bit = 0o100 if status.st_uid == uid else 0o010 if status.st_gid == gid else 0o001
        if not status.st_mode & bit:
            return False
    return True
