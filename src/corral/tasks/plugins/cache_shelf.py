"""The directories of named caches on a worker's disk.

Layout: ``<root>/<tenant>/<name>/<instance>/`` with ``content/`` and ``meta.json`` (size and last use). An instance is
one user's at a time: a second run of the same cache gets another instance, or a fresh one. New content is written
beside the old and takes its place in one rename, so a crash leaves one or the other. All methods block: call them in
threads, except those named ``_nowait``.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from corral.kernel.errors import QuotaExceeded

_log = structlog.get_logger(__name__)
_INCOMING: Final = ".incoming"


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    size_bytes: int
    used_s: float


@dataclass(slots=True, kw_only=True)
class Instance:
    """One instance of a cache; ``path`` is its directory."""

    tenant: str
    name: str
    path: Path
    size_bytes: int = 0
    used_s: float = 0.0
    in_use: bool = False

    @property
    def content(self) -> Path:
        """Where its content is; absent when it was never filled."""
        return self.path / "content"


class Shelf:
    """All caches of a worker. One process owns the root."""

    def __init__(self, root: Path, *, total_bytes: int) -> None:
        self._root = root
        self._total_bytes = total_bytes
        self._instances: list[Instance] = []
        self._next = 0

    def open(self) -> None:
        """Find what an earlier process left; half-written content is removed."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(self._root.glob("*/*/*")):
            tenant, name, number = path.relative_to(self._root).parts
            self._next = max(self._next, int(number) + 1 if number.isdigit() else 0)
            meta = _read_meta(path)
            if meta is None or not (path / "content").is_dir():
                _remove(path)
                continue
            _remove(path / _INCOMING)
            self._instances.append(
                Instance(tenant=tenant, name=name, path=path, size_bytes=meta.size_bytes, used_s=meta.used_s)
            )

    def take_nowait(self, tenant: str, name: str) -> Instance:
        """The instance of a cache that was used last and is free, or a fresh one; it is in use from now on."""
        free = [each for each in self._instances if (each.tenant, each.name, each.in_use) == (tenant, name, False)]
        if free:
            chosen = max(free, key=lambda each: each.used_s)
        else:
            chosen = Instance(tenant=tenant, name=name, path=self._root / tenant / name / str(self._next))
            self._next += 1
            self._instances.append(chosen)
        chosen.in_use = True
        return chosen

    def give_back_nowait(self, instance: Instance, *, now_s: float) -> None:
        """The run is over. One that was never filled is forgotten."""
        instance.in_use = False
        instance.used_s = now_s
        if instance.size_bytes == 0 and not instance.content.exists():
            self._instances.remove(instance)

    def incoming(self, instance: Instance) -> Path:
        """An empty directory for new content."""
        path = instance.path / _INCOMING
        _remove(path)
        path.mkdir(parents=True, mode=0o700)
        return path

    def replace(self, instance: Instance, *, size_bytes: int, now_s: float) -> None:
        """The incoming content takes the place of the old."""
        old = instance.path / ".old"
        _remove(old)
        if instance.content.exists():
            instance.content.rename(old)
        (instance.path / _INCOMING).rename(instance.content)
        _write_meta(instance.path, _Meta(size_bytes=size_bytes, used_s=now_s))
        _remove(old)
        instance.size_bytes, instance.used_s = size_bytes, now_s

    def discard(self, instance: Instance) -> None:
        """Forget an instance that is in use by the caller, and its content."""
        if instance in self._instances:
            self._instances.remove(instance)
        _remove(instance.path)

    def evict(self) -> int:
        """Remove what was used longest ago until under the budget, never what is in use; how many bytes went."""
        total = sum(each.size_bytes for each in self._instances)
        freed = 0
        for each in sorted(self._instances, key=lambda each: each.used_s):
            if total - freed <= self._total_bytes:
                break
            if not each.in_use:
                freed += each.size_bytes
                self.discard(each)
                _log.info("cache evicted", tenant=each.tenant, cache=each.name, size_bytes=each.size_bytes)
        return freed

    @property
    def over_budget(self) -> bool:
        """True when :meth:`evict` has something to do."""
        return sum(each.size_bytes for each in self._instances) > self._total_bytes

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All instances, for people and tests."""
        return tuple(self._instances)


def write_new_file(path: Path, *, executable: bool) -> int:
    """A descriptor of a new file; never follows a symlink. Raises QuotaExceeded when the disk takes no more."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700 if executable else 0o600)
    except OSError as error:
        raise QuotaExceeded(f"the worker's disk takes no more cache files: {error.strerror}") from error


def _read_meta(path: Path) -> _Meta | None:
    try:
        return msgspec.json.decode((path / "meta.json").read_bytes(), type=_Meta)
    except (OSError, msgspec.DecodeError):
        return None  # never filled, or the crash came before the rename: there is nothing to keep


def _write_meta(path: Path, meta: _Meta) -> None:
    temporary = path / "meta.json.new"
    temporary.write_bytes(msgspec.json.encode(meta))
    temporary.rename(path / "meta.json")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
