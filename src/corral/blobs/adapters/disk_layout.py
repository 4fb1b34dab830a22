"""Where things lie in a disk store, and what an OSError means there.

::

    <root>/format                       the layout's version
    <root>/lock                         taken shared to mark a use, exclusive to evict (see disk_files)
    <root>/boot                         the start of the machine since which this store was opened (see disk_settling)
    <root>/removals                     changes with every removal of a blob (see disk_recent)
    <root>/blobs/<tenant>/<hh>/<hash function>-<hex>-<size>      modification time = last use; mode: see disk_settling
    <root>/accounts/<tenant>            blobs and bytes held, for quotas
    <root>/incoming/<instance>/         half-written files of one open store; its `lock` is held while that store lives
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from corral.blobs.model import WritePolicy
from corral.kernel.digest import Digest
from corral.kernel.errors import QuotaExceeded, StoreUnavailable, UnsupportedVersion

FORMAT: Final = "1"
WRITTEN: Final = 0o700
SYNCED: Final = 0o500
SETTLED: Final = 0o600
"""Modes of a blob's file, which say how far it is: see disk_settling."""
MODES: Final = {WritePolicy.THROUGH: SETTLED, WritePolicy.BACK: WRITTEN}
_UNSETTLED_BIT: Final = 0o100
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskLayout:
    """The paths of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / "lock"
        self.blobs = root / "blobs"
        self.accounts = root / "accounts"
        self.incoming = root / "incoming"
        self.boot = root / "boot"
        self.removals = root / "removals"
        self._blobs_text = str(self.blobs)
        self._there: set[str] = set()
        self._durable: set[str] = set()

    def create(self) -> None:
        """Make the folders. Raises UnsupportedVersion when another layout lies here."""
        for folder in (self.root, self.blobs, self.accounts, self.incoming):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        version = self.root / "format"
        try:
            found = version.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            found = ""
        if found == "":  # new, or its first creator died between opening and writing
            version.write_text(FORMAT + "\n", encoding="ascii")
        elif found != FORMAT:
            raise UnsupportedVersion(
                f"the blob store at {self.root} has layout {found[:20]!r}; this program knows layout {FORMAT!r}",
                cure="Use the version of Corral that wrote it, or another folder.",
            )

    def blob(self, tenant: str, digest: Digest) -> str:
        """The path of a blob; tenant and digest were checked before."""
        name = f"{digest.function}-{digest.hash}-{digest.size_bytes}"
        return f"{self._blobs_text}/{tenant}/{digest.hash[:2]}/{name}"

    def shard(self, tenant: str, digest: Digest, policy: WritePolicy) -> str:
        """The folder of a blob, which is there now; with ``THROUGH`` it also survives a loss of power."""
        shard = f"{self._blobs_text}/{tenant}/{digest.hash[:2]}"
        if shard not in self._there:
            os.makedirs(shard, 0o700, exist_ok=True)
            self._there.add(shard)
        if policy is WritePolicy.THROUGH and shard not in self._durable:
            sync_directory(f"{self._blobs_text}/{tenant}")
            sync_directory(self._blobs_text)
            self._durable.add(shard)
        return shard

    def tenants(self) -> list[str]:
        """Every tenant that ever stored something."""
        return sorted(os.listdir(self.blobs))

    def scan(self, tenant: str) -> Iterator[tuple[str, os.stat_result]]:
        """Path and status of every blob of a tenant; blobs may come and go meanwhile."""
        for shard in _entries(f"{self._blobs_text}/{tenant}"):
            for blob in _entries(shard.path):
                try:
                    yield blob.path, blob.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue


def is_settled(status: os.stat_result) -> bool:
    """Whether a blob survives a loss of power, as its file says."""
    return not status.st_mode & _UNSETTLED_BIT


def sync_directory(path: str) -> None:
    """Make the names in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Map OSError: a full disk is QuotaExceeded, anything else StoreUnavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise QuotaExceeded(
                f"the disk is full: {doing} failed ({error.strerror})",
                cure="Free space on the disk of the blob store, or lower its total_bytes so that it evicts earlier.",
                reason="disk-full",
            ) from error
        raise StoreUnavailable(f"the disk store failed while {doing}: {error.strerror or error}") from error


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
