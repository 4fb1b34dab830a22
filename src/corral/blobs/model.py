"""The nouns of blob storage."""

from dataclasses import dataclass
from enum import Enum, StrEnum

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


class WritePolicy(Enum):
    """When content that a store says it holds survives a loss of power. It is whole and true in either case."""

    THROUGH = "through"  # before the answer
    BACK = "back"  # some seconds after it; until then it may be gone after a loss of power, and is never half there


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBounds:
    """Guards for one walk over a tree; exceeding one ends it with TooLarge that names the bound.

    ``directory_bytes`` bounds one encoded directory, ``depth`` the nesting (the top is 0).
    """

    total_bytes: int = 64 * 1024**3
    file_bytes: int = 16 * 1024**3
    entries: int = 1_000_000
    depth: int = 128
    directory_bytes: int = 64 * 1024**2


class NodeKind(StrEnum):
    """What a node of a tree is; devices, sockets and fifos do not exist in trees."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """One node met on a walk; a directory comes before what is in it.

    Attributes:
        path: relative to the top, ``/``-separated.
        digest: of a file its content, of a directory its encoding; None for a symlink.
        target: of a symlink, verbatim; "" otherwise.
    """

    path: str
    kind: NodeKind
    digest: Digest | None = None
    executable: bool = False
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSize:
    """What a tree adds up to; ``total_bytes`` counts every file as often as it occurs."""

    files: int
    directories: int
    symlinks: int
    total_bytes: int
