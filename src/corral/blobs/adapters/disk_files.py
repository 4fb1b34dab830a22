"""The folder of a disk store: open it, mark uses, remove, evict. Runs in threads; nothing here awaits.

Marking a use takes ``<root>/lock`` shared and eviction takes it exclusively for a few files at a time, looking at
each again before it goes: a process that was told "present" cannot lose that blob to another's eviction.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from corral.blobs.adapters.disk_accounts import Accounts, reservation_of
from corral.blobs.adapters.disk_layout import DiskLayout, is_settled
from corral.blobs.adapters.disk_recent import RemovalMark, Use
from corral.blobs.adapters.disk_settling import remember_boot, settle_now
from corral.blobs.adapters.disk_transfer import Upload
from corral.blobs.machine import Resident, plan_eviction
from corral.blobs.model import CleanReport, StoreLimits, StoreUsage, WritePolicy
from corral.kernel.digest import Digest

_EVICTED_PER_LOCK: Final = 64
_TOUCH_EVERY_S_MAX: Final = 10.0
_OWN_LOCK: Final = "lock"


class DiskFiles:
    """One process's hold on a store's folder; several may hold it at once.

    ``unsettled`` are the blobs that the latest cleaning found to be written back and not on the disk yet;
    ``touch_every_s`` is how old the use on record is when a newer one is put there; ``removals`` changes with each.
    """

    def __init__(self, root: Path, *, grace_s: float) -> None:
        self.layout = DiskLayout(root)
        self.accounts = Accounts(self.layout)
        self._grace_s = grace_s
        self.touch_every_s = min(_TOUCH_EVERY_S_MAX, grace_s / 4)
        self.removals = RemovalMark(self.layout.removals)
        self._numbers = count()
        self._incoming = ""
        self._own_lock = -1
        self.unsettled: list[str] = []

    def open(self) -> int:
        """Make the folders, forget half-written files of the dead and what a restart of the machine may have spoiled,
        take an incoming folder; returns how many were forgotten."""
        self.layout.create()
        self.removals.open()
        with self._locked(fcntl.LOCK_EX):
            forgotten = sum(map(self._forget_dead, list(self.layout.incoming.iterdir())))
            forgotten += sum(map(self._forget_lost, remember_boot(self.layout)))
            self._incoming = tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self.layout.incoming)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._own_lock = os.open(f"{self._incoming}/{_OWN_LOCK}", flags, 0o600)
            fcntl.flock(self._own_lock, fcntl.LOCK_EX)
        return forgotten

    def close(self) -> None:
        """Give the incoming folder back; idempotent."""
        if self._own_lock >= 0:
            shutil.rmtree(self._incoming, ignore_errors=True)  # what stays is forgotten by the next who opens
            os.close(self._own_lock)
            self._own_lock = -1
        self.removals.close()

    def new_upload(self, tenant: str, digest: Digest, policy: WritePolicy = WritePolicy.THROUGH) -> Upload:
        """A transfer that has not begun."""
        return Upload(
            self.layout,
            self.accounts,
            incoming=self._incoming,
            number=next(self._numbers),
            tenant=tenant,
            digest=digest,
            policy=policy,
        )

    def use(self, tenant: str, digest: Digest, now_s: float, policy: WritePolicy = WritePolicy.THROUGH) -> Use | None:
        """Mark a blob as used; None when there is none. One of the wrong size is removed: it was truncated.

        With ``THROUGH``, one that was written back is made durable first.
        """
        path = self.layout.blob(tenant, digest)
        if not os.access(path, os.F_OK):  # cheaper than the error of the next line
            return None
        try:
            status = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if status.st_size != digest.size_bytes:
            self.remove(tenant, digest)
            return None
        settled = is_settled(status)
        if policy is WritePolicy.THROUGH and not settled:
            settle_now(path)
            settled = True
        used_s = self.touch(path, used_s=status.st_mtime, now_s=now_s)
        return None if used_s is None else Use(used_s, settled)

    def touch(self, path: str, *, used_s: float, now_s: float) -> float | None:
        """Record a use unless a recent one is on record; gives what is on record now, None when the blob is gone."""
        if abs(now_s - used_s) <= self.touch_every_s:
            return used_s
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(path, (now_s, now_s), follow_symlinks=False)
            except FileNotFoundError:
                return None
        return now_s

    def remove(self, tenant: str, digest: Digest) -> None:
        """Forget a blob; an absent one is no error."""
        self._unlink(tenant, self.layout.blob(tenant, digest), digest.size_bytes)

    def evict(
        self, limits: StoreLimits, *, now_s: float, is_pinned: Callable[[str], bool], stop: threading.Event
    ) -> tuple[int, int]:
        """Carry out the eviction plan; returns blobs and bytes removed. Ends early when ``stop`` is set."""
        held_bytes, oldest_s = self._survey(stop)
        too_much = limits.total_bytes is not None and held_bytes > limits.total_bytes
        too_old = limits.age_s is not None and now_s - oldest_s > limits.age_s
        if not (too_much or too_old):
            return 0, 0  # the usual case costs no memory
        residents = (
            Resident(status.st_mtime, status.st_size, path)
            for tenant in self.layout.tenants()
            for path, status in self.layout.scan(tenant)
            if not is_pinned(path)
        )
        plan = plan_eviction(residents, held_bytes=held_bytes, limits=limits, grace_s=self._grace_s, now_s=now_s)
        evicted_blobs = evicted_bytes = 0
        for start in range(0, len(plan), _EVICTED_PER_LOCK):
            if stop.is_set():
                break
            with self._locked(fcntl.LOCK_EX):
                for resident in plan[start : start + _EVICTED_PER_LOCK]:
                    if not is_pinned(resident.place) and self._evict_one(resident):
                        evicted_blobs += 1
                        evicted_bytes += resident.size_bytes
        return evicted_blobs, evicted_bytes

    def recount(self) -> None:
        """Count every tenant's files anew."""
        for tenant in self.layout.tenants():
            before = self.accounts.usage(tenant)
            self.accounts.correct(tenant, before=before, counted=self.accounts.count(tenant))

    def usage(self, tenant: str | None) -> StoreUsage:
        """What is held, of one tenant or of all."""
        tenants = self.layout.tenants() if tenant is None else [tenant]
        each = [self.accounts.usage(name) for name in tenants]
        return StoreUsage(blobs=sum(one.blobs for one in each), total_bytes=sum(one.total_bytes for one in each))

    def clean(
        self, limits: StoreLimits, *, now_s: float, is_pinned: Callable[[str], bool], stop: threading.Event
    ) -> CleanReport:
        """Evict, then count anew."""
        blobs, size_bytes = self.evict(limits, now_s=now_s, is_pinned=is_pinned, stop=stop)
        if not stop.is_set():
            self.recount()
        return CleanReport(evicted_blobs=blobs, evicted_bytes=size_bytes, left=self.usage(None))

    def _survey(self, stop: threading.Event) -> tuple[int, float]:
        held_bytes, oldest_s = 0, float("inf")
        self.unsettled = []
        for tenant in self.layout.tenants():
            for path, status in self.layout.scan(tenant):
                held_bytes += status.st_size
                oldest_s = min(oldest_s, status.st_mtime)
                if not is_settled(status):
                    self.unsettled.append(path)
                if stop.is_set():
                    return 0, float("inf")
        return held_bytes, oldest_s

    def _evict_one(self, resident: Resident) -> bool:
        try:
            if os.stat(resident.place, follow_symlinks=False).st_mtime != resident.used_s:
                return False  # used since we looked
        except FileNotFoundError:
            return False
        return self._unlink(_tenant_of(resident.place), resident.place, resident.size_bytes)

    def _forget_lost(self, path: str) -> bool:
        return self._unlink(_tenant_of(path), path, int(path.rpartition("-")[2]))

    def _unlink(self, tenant: str, path: str, size_bytes: int) -> bool:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        self.removals.change()
        self.accounts.subtract(tenant, blobs=1, size_bytes=size_bytes)
        return True

    def _forget_dead(self, folder: Path) -> int:
        """Remove another's incoming folder unless its owner lives; the lock, not a process id, says who lives."""
        try:
            descriptor = os.open(folder / _OWN_LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # it died between making the folder and the lock: both happen under our lock
            descriptor = -1
        try:
            if descriptor >= 0:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reserved = [found for name in os.listdir(folder) if (found := reservation_of(name)) is not None]
            shutil.rmtree(folder)
        except BlockingIOError:
            return 0
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        for tenant, size_bytes in reserved:
            self.accounts.subtract(tenant, blobs=1, size_bytes=size_bytes)
        return len(reserved)

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        # A fresh descriptor each time: a lock belongs to the open file, and threads must not share one.
        descriptor = os.open(self.layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.closing(os.fdopen(descriptor, "rb+", 0)):
            fcntl.flock(descriptor, kind)
            yield


def _tenant_of(path: str) -> str:
    return os.path.basename(os.path.dirname(os.path.dirname(path)))
