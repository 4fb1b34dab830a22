"""The files of live logs: their names, and the few things that are done to them.

A log is one file whose suffix is its stage: ``.log`` (open, grows), ``.closed`` (complete), and ``.sealed`` (a record
that names the blob; the text is gone from here). ``.packed`` and ``.temporary`` are half-done work of a process that
was killed. Everything here blocks; what is called on the event loop costs microseconds of page cache.
"""

import errno
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from corral.kernel.errors import InvalidSpec, QuotaExceeded, StoreUnavailable

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_STAGES: Final = ("log", "closed")
_logger = structlog.get_logger("corral.tasks.logs")


@dataclass(frozen=True, slots=True)
class LogKey:
    """Names one run's log. Raises InvalidSpec when a part could not be part of a file's name."""

    tenant: str
    task_id: str
    run: int

    def __post_init__(self) -> None:
        if not (_NAME.fullmatch(self.tenant) and _NAME.fullmatch(self.task_id) and 0 <= self.run < 1_000_000):
            raise InvalidSpec(f"no log can be named {self.tenant[:70]!r}, {self.task_id[:70]!r}, {self.run}")


class SealedLog(msgspec.Struct, frozen=True, kw_only=True):
    """A finished log: the blob that holds it, and how many bytes of text it has."""

    digest: str
    log_bytes: int


class LogFiles:
    """The logs of one scheduler, under one directory, one folder per tenant."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, key: LogKey, stage: str) -> Path:
        """Where the log is, or would be, in a stage."""
        return self._directory / key.tenant / f"{key.task_id}.{key.run}.{stage}"

    def scan(self) -> Iterator[tuple[LogKey, str]]:
        """All logs and their stages; removes what a killed process left half-done, so only for a start."""
        for path in sorted(self._directory.glob("*/*")):
            match path.name.split("."):
                case [task_id, run, ("log" | "closed" | "sealed") as stage] if run.isdecimal():
                    yield LogKey(path.parent.name, task_id, int(run)), stage
                case [_, _, ("packed" | "temporary")]:
                    path.unlink(missing_ok=True)
                case _:
                    _logger.warning("unknown-file-among-logs", file=str(path))

    def sealed_keys(self) -> list[LogKey]:
        """The finished logs; blocks for as long as the folders are large."""
        names = ((path.parent.name, path.name.split(".")) for path in self._directory.glob("*/*.sealed"))
        return [LogKey(tenant, parts[0], int(parts[1])) for tenant, parts in names]

    def runs(self, tenant: str, task_id: str) -> frozenset[LogKey]:
        """The logs of a task, in whatever stage."""
        names = (path.name.split(".") for path in (self._directory / tenant).glob(f"{task_id}.*"))
        return frozenset(LogKey(tenant, task_id, int(name[1])) for name in names)

    def find(self, key: LogKey) -> tuple[str, int] | None:
        """Stage and size of a log that is not sealed; None when there is no file."""
        for stage in _STAGES:
            try:
                return stage, self.path(key, stage).stat().st_size
            except FileNotFoundError:
                continue
        return None

    def sealed(self, key: LogKey) -> SealedLog | None:
        """The record of a finished log, if it is finished."""
        try:
            return msgspec.json.decode(self.path(key, "sealed").read_bytes(), type=SealedLog)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreUnavailable(f"the record of a finished log cannot be read: {error}") from error

    def write(self, key: LogKey, at: int, data: bytes) -> int:
        """Put all of ``data`` at ``at``, or raise; returns the file's new size.

        Raises: QuotaExceeded when the disk is full, StoreUnavailable; a part may then have been written.
        """
        path = self.path(key, "log")
        try:
            if at == 0:
                path.parent.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], at + written)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise QuotaExceeded("the scheduler's disk is full: the log cannot grow") from error
            raise StoreUnavailable(f"the log cannot be written: {error.strerror}") from error
        return at + len(data)

    def read(self, key: LogKey, at: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``at``; nothing when there is no file (any more)."""
        for stage in (*_STAGES, "log"):  # it may be renamed between the looks
            try:
                descriptor = os.open(self.path(key, stage), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                return os.pread(descriptor, length, at)
            finally:
                os.close(descriptor)
        return b""

    def close(self, key: LogKey) -> bool:
        """From open to closed; False when there is no open file."""
        try:
            self.path(key, "log").rename(self.path(key, "closed"))
        except FileNotFoundError:
            return False
        return True

    def write_record(self, key: LogKey, sealed: SealedLog) -> None:
        """Make the record of a finished log, on the disk when this returns."""
        temporary = self.path(key, "temporary")
        with temporary.open("wb") as record:
            record.write(msgspec.json.encode(sealed))
            record.flush()
            os.fdatasync(record.fileno())
        temporary.rename(self.path(key, "sealed"))
        _sync_path(temporary.parent, os.O_DIRECTORY)

    def remove(self, key: LogKey) -> None:
        """Forget a log altogether."""
        for stage in (*_STAGES, "packed", "sealed"):
            self.path(key, stage).unlink(missing_ok=True)

    def sync(self, keys: Iterable[LogKey]) -> None:
        """Bring logs, and the folders that name them, to the disk."""
        folders = set()
        for key in keys:
            for stage in (*_STAGES, "log"):
                try:
                    _sync_path(self.path(key, stage), 0)
                except FileNotFoundError:
                    continue  # renamed, sealed or forgotten meanwhile
                folders.add(self.path(key, stage).parent)
                break
        for folder in folders:
            _sync_path(folder, os.O_DIRECTORY)


async def pieces(path: Path) -> AsyncIterator[bytes]:
    """A file's content in pieces of 1 MiB."""
    with path.open("rb") as file:
        while piece := file.read(1024 * 1024):
            yield piece


def _sync_path(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
