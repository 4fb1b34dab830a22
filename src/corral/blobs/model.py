"""The nouns of blob storage."""

from dataclasses import dataclass

import msgspec

from corral.kernel.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds of one store. Zero never means "unlimited": None does.

    ``blob_bytes`` is the largest single blob, ``total_bytes`` the budget that eviction keeps (all tenants),
    ``tenant_bytes`` the quota of each tenant, ``age_s`` how long a blob may stay unused.
    """

    blob_bytes: int = 64 * 1024**3
    total_bytes: int | None = None
    tenant_bytes: int | None = None
    age_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUsage:
    """What a store holds."""

    blobs: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanReport:
    """What one cleaning removed and what is left."""

    evicted_blobs: int
    evicted_bytes: int
    left: StoreUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class TierHealth:
    """State of one tier; ``reason`` says why it is skipped, ``since_s`` is Unix time of the last change."""

    name: str
    ok: bool
    reason: str
    since_s: float


class FileNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of a directory."""

    name: str
    digest: Digest
    executable: bool = False


class DirectoryNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sub-directory: the digest of its encoded :class:`Directory`."""

    name: str
    digest: Digest


class SymlinkNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A symbolic link; the target is verbatim and must stay inside the tree."""

    name: str
    target: str


class Directory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One directory of a tree; every list is sorted by name. Its canonical encoding is itself a blob,
    so a *tree* is the digest of its top directory (a Merkle tree, as in Bazel's remote execution API)."""

    files: tuple[FileNode, ...] = ()
    directories: tuple[DirectoryNode, ...] = ()
    symlinks: tuple[SymlinkNode, ...] = ()
