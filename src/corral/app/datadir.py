"""The data directory belongs to one process group at a time: a lock that the kernel frees with its holder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corral.kernel.errors import Conflict, InvalidSpec
from corral.kernel.ids import new_id


@contextmanager
def locked_directory(directory: Path, role: str) -> Iterator[Path]:
    """Make ``directory`` when it is absent, and hold it as ``role`` ("up", "scheduler", "worker").

    Raises:
        Conflict: another process holds it in this role; the message names its pid.
        InvalidSpec: it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(directory / f"{role}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidSpec(
            f"data_dir: {directory} cannot be used: {error.strerror}", cure="name another one with --data-dir"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"{directory} is in use by another `corral {role}`, pid {holder}",
                cure="stop that one, or name another directory with --data-dir",
                pid=holder,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield directory
    finally:
        os.close(descriptor)


def kept_id(file: Path, prefix: str, *, now_s: float) -> str:
    """The id that a data directory keeps for its process, made at the first start."""
    if not file.exists():
        fresh = file.with_suffix(".new")
        fresh.write_text(new_id(prefix, now_s=now_s))
        fresh.rename(file)
    return file.read_text().strip()
