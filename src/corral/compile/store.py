"""The results on this machine's disk.

Layout below the store's directory, all of it under ``v1``: ``sets/a/<request key>``, ``results/a/<result key>``,
``objects/a/<digest>`` (only without compression) and ``new/`` for what is being written. A file appears by rename;
its hash is checked whenever it is read. Last use is the file's modification time.

Everything here is blocking and quick; :meth:`ResultStore.put`, :meth:`clean` and :meth:`scan` belong into a thread.
"""

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import blake3
import msgspec

from corral.blobs.machine import Resident, plan_eviction
from corral.blobs.model import StoreLimits
from corral.compile.entries import (
    Content,
    ResultEntry,
    SetsEntry,
    compressed,
    decode_result,
    decode_sets,
    encode,
    uncompressed,
)
from corral.compile.files import read_whole
from corral.compile.limits import CompileConfig
from corral.compile.model import IncludeSet, OutputFile, Result
from corral.compile.place import clone, new_file
from corral.kernel.errors import CorralError, QuotaExceeded, StoreUnavailable

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_TOUCH_EVERY_S: Final = 600.0
"""A hit marks its entry as used at most this often; eviction needs no finer order."""
_SETS_BYTES_MAX: Final = 64 * 1024**2
_LOW_WATER: Final = 0.9
_SECTIONS: Final = ("sets", "results", "objects")


class StoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds, or what a cleaning did."""

    entries: int
    used_bytes: int
    removed: int = 0
    removed_bytes: int = 0


class ResultStore:
    """Results by key, include sets by request. Opening makes the directories."""

    def __init__(self, directory: Path, config: CompileConfig) -> None:
        self.directory = directory
        self._base = str(directory / "v1")
        self._config = config
        self._names = itertools.count()
        self.used_bytes = 0
        self.unwritten = 0
        """Results that could not be stored since the start, for a full disk most of all."""
        try:
            for section in (*_SECTIONS, "new"):
                Path(self._base, section).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreUnavailable(f"the compile store {directory} cannot be used: {error.strerror}") from error

    def configure(self, config: CompileConfig) -> None:
        """Take other limits; the directory stays."""
        self._config = config

    def sweep(self) -> None:
        """Remove what a killed owner left half written. For the owner only: others may be writing."""
        for left in os.scandir(Path(self._base, "new")):
            with contextlib.suppress(OSError):
                Path(left.path).unlink()

    # Reading

    def sets(self, request_key: str) -> tuple[tuple[IncludeSet, str], ...]:
        """The include sets known for a request, with their result keys; none when there is no whole entry."""
        data = self._read("sets", request_key, at_most=_SETS_BYTES_MAX, now_s=None)
        entry = None if data is None else decode_sets(data, request_key)
        return () if entry is None else entry.sets

    def result(self, result_key: str, *, now_s: float) -> ResultEntry | None:
        """A result, checked; a damaged entry is removed and counts as absent."""
        data = self._read("results", result_key, at_most=None, now_s=now_s)
        if data is None:
            return None
        entry = decode_result(data, result_key)
        if entry is None:
            self._remove("results", result_key)
        return entry

    def place(
        self, entry: ResultEntry, targets: Mapping[str, str], *, umask: int, rules: Callable[[bytes], bytes]
    ) -> None:
        """Write the files of a result to ``targets`` (role to absolute path). They appear whole, or not at all.

        ``rules`` makes of stored make rules those of this checkout.

        Raises:
            OSError: the target cannot be written; nothing is left of it.
            KeyError: a role has no target.
            LookupError: a stored object is gone or damaged; the entry is removed.
        """
        sizes = {file.role: file for file in entry.result.files}
        for content in entry.contents:
            file, target = sizes[content.role], targets[content.role]
            mode = file.mode & ~umask
            if content.inside:
                data = uncompressed(content.data, file.size_bytes)
                new_file(target, rules(data) if content.role == "dependencies" else data, mode=mode)
            else:
                self._place_object(entry.key, file, target, mode)

    def content(self, entry: ResultEntry, role: str) -> bytes:
        """The bytes of one file of a result. Raises LookupError when they are gone or damaged."""
        for content, file in zip(entry.contents, entry.result.files, strict=True):
            if content.role != role:
                continue
            if content.inside:
                return uncompressed(content.data, file.size_bytes)
            data = self._read("objects", file.digest, at_most=None, now_s=None)
            if data is not None and blake3.blake3(data).hexdigest() == file.digest:
                return data
            self._remove("results", entry.key)
        raise LookupError(role)

    def _place_object(self, key: str, file: OutputFile, target: str, mode: int) -> None:
        source = self._path("objects", file.digest)
        hasher = blake3.blake3()
        try:
            hasher.update_mmap(source) if file.size_bytes else hasher.update(Path(source).read_bytes())
        except OSError as error:
            self._remove("results", key)
            raise LookupError(file.digest) from error
        if hasher.hexdigest() != file.digest:
            self._remove("objects", file.digest)
            self._remove("results", key)
            raise LookupError(file.digest)
        clone(source, target, mode=mode, link=self._config.hard_links)

    # Writing

    def put(
        self, request_key: str, result_key: str, include_set: IncludeSet, result: Result, files: Mapping[str, bytes]
    ) -> None:
        """Store a successful result under both keys.

        Raises:
            QuotaExceeded: the disk is full; nothing is stored.
            StoreUnavailable: the disk failed.
        """
        try:
            contents = tuple(self._stored(file, files[file.role]) for file in result.files)
            self._put(request_key, include_set, ResultEntry(key=result_key, result=result, contents=contents))
        except OSError as error:
            raise self._failure(error) from error

    def adopt(self, request_key: str, include_set: IncludeSet, entry: ResultEntry) -> None:
        """Store a result that came from elsewhere; a disk that fails keeps nothing and hinders nobody."""
        try:
            self._put(request_key, include_set, entry)
        except OSError:
            self.unwritten += 1

    def _put(self, request_key: str, include_set: IncludeSet, entry: ResultEntry) -> None:
        self._write("results", entry.key, encode(entry))
        kept = [pair for pair in self.sets(request_key) if pair[1] != entry.key]
        sets = ((include_set, entry.key), *kept)[: self._config.include_sets]
        self._write("sets", request_key, encode(SetsEntry(key=request_key, sets=sets)))

    def _failure(self, error: OSError) -> CorralError:
        self.unwritten += 1
        if error.errno in _FULL:
            return QuotaExceeded(f"the disk of the compile store {self.directory} is full")
        return StoreUnavailable(f"the compile store {self.directory} failed: {error.strerror}")

    def _stored(self, file: OutputFile, data: bytes) -> Content:
        # Make rules are rewritten when they are replayed, so they always lie within.
        if self._config.compression_level or file.role == "dependencies":
            data = compressed(data, self._config.compression_level or 1)
            return Content(file.role, inside=True, data=data)
        if not Path(self._path("objects", file.digest)).exists():
            self._write("objects", file.digest, data)
        return Content(file.role, inside=False)

    # Upkeep

    def scan(self) -> StoreReport:
        """Count what is there, and remember it as the size."""
        entries, used = 0, 0
        for resident in self._residents():
            entries += 1
            used += resident.size_bytes
        self.used_bytes = used
        return StoreReport(entries=entries, used_bytes=used)

    def clean(self, *, now_s: float, to_bytes: int | None, age_s: float | None) -> StoreReport:
        """Remove what nobody used for ``age_s``, then the least recently used until under ``to_bytes``."""
        residents = list(self._residents())
        held = sum(resident.size_bytes for resident in residents)
        limits = StoreLimits(total_bytes=to_bytes, age_s=age_s)
        # A clock that was set back leaves entries "of the future": they count as used now.
        chosen = plan_eviction(residents, held_bytes=held, limits=limits, grace_s=-1e18, now_s=now_s)
        removed, removed_bytes = 0, 0
        for resident in chosen:
            with contextlib.suppress(FileNotFoundError):
                Path(resident.place).unlink()
                removed += 1
                removed_bytes += resident.size_bytes
        self.used_bytes = held - removed_bytes
        return StoreReport(
            entries=len(residents) - removed,
            used_bytes=self.used_bytes,
            removed=removed,
            removed_bytes=removed_bytes,
        )

    def clean_if_over(self, *, now_s: float) -> StoreReport | None:
        """Clean when the size has grown past the limit. None: it has not."""
        if self.used_bytes <= self._config.store_bytes:
            return None
        low = int(self._config.store_bytes * _LOW_WATER)
        return self.clean(now_s=now_s, to_bytes=low, age_s=self._config.store_age_s)

    def clean_old(self, *, now_s: float) -> StoreReport:
        """Remove what nobody used for too long, and count what is there."""
        return self.clean(now_s=now_s, to_bytes=None, age_s=self._config.store_age_s)

    def _residents(self) -> Iterator[Resident]:
        for section in _SECTIONS:
            for shelf in os.scandir(Path(self._base, section)):
                if not shelf.is_dir(follow_symlinks=False):
                    continue
                for file in os.scandir(shelf.path):
                    with contextlib.suppress(FileNotFoundError):
                        found = file.stat(follow_symlinks=False)
                        yield Resident(found.st_mtime, found.st_blocks * 512, file.path)

    # Files

    def _path(self, section: str, key: str) -> str:
        # Few folders: in a new store, making one costs more than writing a result into it.
        return f"{self._base}/{section}/{key[0]}/{key}"

    def _read(self, section: str, key: str, *, at_most: int | None, now_s: float | None) -> bytes | None:
        path = self._path(section, key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = os.fstat(descriptor)
            if at_most is not None and found.st_size > at_most:
                return None
            data = read_whole(descriptor, found.st_size)
            if now_s is not None and abs(now_s - found.st_mtime) > _TOUCH_EVERY_S:
                os.utime(descriptor, (now_s, now_s))
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return data

    def _write(self, section: str, key: str, data: bytes) -> None:
        path = self._path(section, key)
        fresh = f"{self._base}/new/{os.getpid()}-{next(self._names)}"
        try:
            Path(fresh).write_bytes(data)
            blocks = Path(fresh).stat().st_blocks
            try:
                Path(fresh).rename(path)
            except FileNotFoundError:
                Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                Path(fresh).rename(path)
        except OSError:
            Path(fresh).unlink(missing_ok=True)
            raise
        self.used_bytes += blocks * 512

    def _remove(self, section: str, key: str) -> None:
        Path(self._path(section, key)).unlink(missing_ok=True)

    def wipe(self) -> None:
        """Remove everything, also of other versions."""
        for version in os.scandir(self.directory):
            if version.name.startswith("v") and version.is_dir(follow_symlinks=False):
                for section in os.scandir(version.path):
                    if section.is_dir(follow_symlinks=False):
                        for shelf in os.scandir(section.path):
                            shutil.rmtree(shelf.path, ignore_errors=True)
        self.used_bytes = 0
