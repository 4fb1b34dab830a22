"""The explain records: one file per source, the latest attempt. Blocking and short; used from the daemon's threads."""

import contextlib
import os
from pathlib import Path

import blake3
import msgspec

from corral.compile.explain import Record


class Records:
    """Records by absolute source path; at most ``records_max``, the oldest out first."""

    def __init__(self, directory: Path, *, records_max: int) -> None:
        self._directory = directory / "explain"
        self._records_max = records_max
        self._written = 0
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def read(self, source: str) -> Record | None:
        """The latest record, None when there is none (or a damaged one)."""
        try:
            return msgspec.json.decode(self._path(source).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, record: Record) -> None:
        """Replace the record. Best effort: explain is never a reason to fail."""
        path = self._path(record.source)
        fresh = path.with_suffix(f".new{os.getpid()}")
        try:
            fresh.write_bytes(msgspec.json.encode(record))
            fresh.rename(path)
        except (OSError, UnicodeEncodeError):
            with contextlib.suppress(OSError):
                fresh.unlink()
            return
        self._written += 1
        if self._written % 256 == 1:
            self._bound()

    def all(self) -> list[Record]:
        """Every record, the latest first."""
        found = []
        for path in self._directory.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(path.read_bytes(), type=Record))
        return sorted(found, key=lambda record: -record.at_s)

    def _bound(self) -> None:
        found = []
        for file in os.scandir(self._directory):
            with contextlib.suppress(OSError):  # another thread renames its own meanwhile
                found.append((file.stat().st_mtime, file.path))
        for _, path in sorted(found)[: max(0, len(found) - self._records_max)]:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _path(self, source: str) -> Path:
        name = blake3.blake3(source.encode("utf-8", "surrogateescape")).hexdigest(length=16)
        return self._directory / f"{name}.json"
