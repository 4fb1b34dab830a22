"""Blobs that were written back: visible at once, and on the disk some seconds later.

The mode of a blob's file says how far it is::

    0700  written   its bytes may be in memory only: after a restart of the machine it is removed
    0500  synced    its bytes are on the disk; that this is so, perhaps not yet
    0600  settled   as every blob that was written through

One turn syncs the whole file system, then marks as synced what was written before it, and as settled what was synced
before it. A process that dies leaves files in the first two; cleaning finds them and takes them along.
"""

import asyncio
import ctypes
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from corral.blobs.adapters.disk_layout import SETTLED, SYNCED, WRITTEN, DiskLayout, sync_directory

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger(__name__)


class Settling:
    """Makes blobs durable some seconds after they were written. For one event loop; ``add`` may come from a thread."""

    def __init__(self, layout: DiskLayout, threads: Executor, *, every_s: float) -> None:
        self._layout = layout
        self._threads = threads
        self._every_s = every_s
        self._lock = threading.Lock()
        self._written: list[str] = []
        self._synced: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: Future[None] | None = None
        self._closed = False

    def expect(self) -> None:
        """Something was added, or may be: a turn will come. Runs in the event loop."""
        if self._timer is None and not self._closed and (self._written or self._synced):
            self._timer = asyncio.get_running_loop().call_later(self._every_s, self._begin)

    def add(self, paths: Iterable[str]) -> None:
        """These are written and not synced."""
        with self._lock:
            self._written += paths

    def turn(self) -> None:
        """Sync, and mark. Runs in a thread. Raises OSError."""
        with self._lock:
            written, self._written = self._written, []
            synced, self._synced = self._synced, []
        # A file that takes the place of one of these from here on is not synced by this turn.
        now_written, now_synced = _inodes(written), _inodes(synced, mode=SYNCED)
        try:
            _sync_file_system(self._layout.root)
        except OSError:
            self.add([*written, *synced])
            raise
        _mark(now_written, SYNCED)
        _mark(now_synced, SETTLED)
        with self._lock:
            self._synced += now_written

    def close(self) -> None:
        """No turn begins any more. What is not settled is found by a later cleaning."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._running = self._threads.submit(self.turn)
        self._running.add_done_callback(lambda turn: loop.call_soon_threadsafe(self._ended, turn))

    def _ended(self, turn: "Future[None]") -> None:
        self._timer = None
        if not turn.cancelled() and (failure := turn.exception()) is not None:
            _log.warning("blobs that were written back are not on the disk yet", reason=str(failure))
        self.expect()


def settle_now(path: str) -> None:
    """Make one blob durable that was written back; nothing when it has gone. Raises OSError. Runs in a thread."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
        os.fchmod(descriptor, SETTLED)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shard = os.path.dirname(path)
    for folder in (shard, os.path.dirname(shard), os.path.dirname(os.path.dirname(shard))):
        sync_directory(folder)


def remember_boot(layout: DiskLayout) -> list[str]:
    """Note that this store was opened since the machine's start; when it is the first time since then, gives all blobs
    that were only written before it. Whoever calls holds the store's lock."""
    boot = _BOOT_ID.read_text(encoding="ascii").strip()
    with suppress(FileNotFoundError):
        if layout.boot.read_text(encoding="ascii").strip() == boot:
            return []
    lost = [path for tenant in layout.tenants() for path, status in layout.scan(tenant) if _is_written(status)]
    layout.boot.write_text(boot + "\n", encoding="ascii")
    return lost


def _is_written(status: os.stat_result) -> bool:
    return status.st_mode & 0o777 == WRITTEN


def _inodes(paths: Iterable[str], mode: int | None = None) -> dict[str, int]:
    """The files that are still there, and have this mode."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):  # evicted meanwhile
            status = os.stat(path, follow_symlinks=False)
            if mode is None or status.st_mode & 0o777 == mode:
                found[path] = status.st_ino
    return found


def _mark(files: Mapping[str, int], mode: int) -> None:
    for path, inode in files.items():
        with suppress(FileNotFoundError):
            if os.stat(path, follow_symlinks=False).st_ino == inode:
                os.chmod(path, mode)


def _sync_file_system(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
