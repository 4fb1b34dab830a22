"""What each tenant holds, in one small file per tenant that several processes add to under its lock.

A reservation is made when a write begins, so that concurrent writers cannot overshoot a quota together. A process
that dies leaves its reservation behind; whoever removes its half-written files gives it back, and every cleaning
counts again. The file is not synced: after a power loss the next cleaning repairs it.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from corral.blobs.adapters.disk_layout import DiskLayout
from corral.blobs.machine import check_quota
from corral.blobs.model import StoreUsage

_RECORD = struct.Struct("<qq")


class Accounts:
    """Blobs and bytes of every tenant. Runs in threads; nothing here awaits."""

    def __init__(self, layout: DiskLayout) -> None:
        self._layout = layout

    def add(self, tenant: str, size_bytes: int, *, blobs: int = 1, quota_bytes: int | None) -> None:
        """Reserve room for some blobs. Raises QuotaExceeded when they do not fit together."""
        with self._locked(tenant) as (descriptor, had_blobs, held_bytes):
            check_quota(tenant, held_bytes=held_bytes, more_bytes=size_bytes, quota_bytes=quota_bytes)
            _store(descriptor, had_blobs + blobs, held_bytes + size_bytes)

    def subtract(self, tenant: str, *, blobs: int, size_bytes: int) -> None:
        """Give room back."""
        with self._locked(tenant) as (descriptor, had_blobs, held_bytes):
            _store(descriptor, max(0, had_blobs - blobs), max(0, held_bytes - size_bytes))

    def usage(self, tenant: str) -> StoreUsage:
        """What the tenant holds, reservations included."""
        with self._locked(tenant) as (_descriptor, blobs, held_bytes):
            return StoreUsage(blobs=blobs, total_bytes=held_bytes)

    def correct(self, tenant: str, *, before: StoreUsage, counted: StoreUsage) -> None:
        """Replace what was believed ``before`` a count by what was ``counted``; changes since then stay in."""
        with self._locked(tenant) as (descriptor, blobs, held_bytes):
            more_blobs = counted.blobs - before.blobs
            more_bytes = counted.total_bytes - before.total_bytes
            _store(descriptor, max(0, blobs + more_blobs), max(0, held_bytes + more_bytes))

    def count(self, tenant: str) -> StoreUsage:
        """Count the files themselves, the half-written ones by their announced size."""
        sizes = [status.st_size for _path, status in self._layout.scan(tenant)]
        sizes += [size_bytes for owner, size_bytes in incoming_sizes(self._layout) if owner == tenant]
        return StoreUsage(blobs=len(sizes), total_bytes=sum(sizes))

    @contextmanager
    def _locked(self, tenant: str) -> Iterator[tuple[int, int, int]]:
        path = self._layout.accounts / tenant
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            record = os.pread(descriptor, _RECORD.size, 0)
            if len(record) == _RECORD.size:
                blobs, held_bytes = _RECORD.unpack(record)
            else:  # a new account, or one that a power loss took
                counted = self.count(tenant)
                blobs, held_bytes = counted.blobs, counted.total_bytes
            yield descriptor, blobs, held_bytes
        finally:
            os.close(descriptor)  # and with it the lock


def incoming_name(tenant: str, size_bytes: int, number: int) -> str:
    """The name of a half-written file: it says what was reserved for it."""
    return f"{tenant}@{size_bytes}@{number}"


def incoming_sizes(layout: DiskLayout) -> list[tuple[str, int]]:
    """Tenant and announced size of every half-written file of every process."""
    sizes = []
    for folder in layout.incoming.iterdir():
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        sizes += [reserved for name in names if (reserved := reservation_of(name)) is not None]
    return sizes


def reservation_of(name: str) -> tuple[str, int] | None:
    """Tenant and size that a half-written file's name says; None for other files."""
    tenant, _, rest = name.partition("@")
    size, _, _number = rest.partition("@")
    return (tenant, int(size)) if size.isdecimal() else None


def _store(descriptor: int, blobs: int, held_bytes: int) -> None:
    os.pwrite(descriptor, _RECORD.pack(blobs, held_bytes), 0)
