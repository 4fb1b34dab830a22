"""Trees as values: their canonical encoding, what makes one well formed, and counting against bounds. Pure.

A tree's name is the digest of its top :class:`Directory`, encoded as JSON with fields in declared order, no spaces,
every list sorted by name (code points). Two equal directories therefore have one digest, and a directory whose
bytes are not exactly its canonical encoding is refused.
"""

from operator import attrgetter
from typing import Final

import msgspec

from corral.blobs.machine import check_digest
from corral.blobs.model import Directory, NodeKind, TreeBounds, TreeSize
from corral.kernel.errors import InvalidSpec, TooLarge
from corral.kernel.units import format_size

NAME_BYTES_MAX: Final = 255
TARGET_BYTES_MAX: Final = 4096
_BY_NAME: Final = attrgetter("name")


class TreeMeter:
    """Counts a walk against its bounds."""

    def __init__(self, bounds: TreeBounds) -> None:
        self._bounds = bounds
        self._counts: dict[NodeKind, int] = dict.fromkeys(NodeKind, 0)
        self._total_bytes = 0

    def add(self, kind: NodeKind, path: str, *, depth: int, size_bytes: int = 0) -> None:
        """Count one node. Raises TooLarge at the first that is too many, too deep or too large."""
        bounds = self._bounds
        self._counts[kind] += 1
        if sum(self._counts.values()) > bounds.entries:
            raise _over("entries", bounds.entries, f"the tree has more than {bounds.entries} entries")
        if depth > bounds.depth:
            raise _over("depth", bounds.depth, f"{_short(path)} is nested deeper than {bounds.depth} directories")
        if kind is NodeKind.FILE:
            self._add_file(path, size_bytes)

    def size(self) -> TreeSize:
        """The sum so far."""
        return TreeSize(
            files=self._counts[NodeKind.FILE],
            directories=self._counts[NodeKind.DIRECTORY],
            symlinks=self._counts[NodeKind.SYMLINK],
            total_bytes=self._total_bytes,
        )

    def _add_file(self, path: str, size_bytes: int) -> None:
        bounds = self._bounds
        self._total_bytes += size_bytes
        if size_bytes > bounds.file_bytes:
            size, most = format_size(size_bytes), format_size(bounds.file_bytes)
            raise _over("file_bytes", bounds.file_bytes, f"{_short(path)} has {size}; a file may have {most}")
        if self._total_bytes > bounds.total_bytes:
            most = format_size(bounds.total_bytes)
            raise _over("total_bytes", bounds.total_bytes, f"the files of the tree add up to more than {most}")


def encode_directory(directory: Directory) -> bytes:
    """The canonical encoding; sorts the lists. Raises InvalidSpec when a name is wrong or occurs twice."""
    check_directory(directory)
    return msgspec.json.encode(
        Directory(
            files=tuple(sorted(directory.files, key=_BY_NAME)),
            directories=tuple(sorted(directory.directories, key=_BY_NAME)),
            symlinks=tuple(sorted(directory.symlinks, key=_BY_NAME)),
        )
    )


def decode_directory(data: bytes) -> Directory:
    """Read a canonical encoding, and only that. Raises InvalidSpec."""
    try:
        directory = msgspec.json.decode(data, type=Directory)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: a key that is not UTF-8
        raise InvalidSpec(f"this blob is not a directory of a tree: {error}", field="tree") from error
    if encode_directory(directory) != data:
        raise InvalidSpec("this blob is not a directory of a tree: its encoding is not canonical", field="tree")
    return directory


def check_directory(directory: Directory) -> None:
    """Raise InvalidSpec when a name is not one component of a path, or two nodes have one name.

    Names that differ in case only are two names, as on every Linux file system.
    """
    names = [file.name for file in directory.files]
    names += [below.name for below in directory.directories]
    names += [link.name for link in directory.symlinks]
    seen: set[str] = set()
    for name in names:
        check_name(name)
        if name in seen:
            raise InvalidSpec(f"the name {name!r} occurs twice in one directory of the tree", field="tree")
        seen.add(name)
    for file in directory.files:
        check_digest(file.digest)
    for below in directory.directories:
        check_digest(below.digest)
    for link in directory.symlinks:
        if not link.target or "\0" in link.target or len(_utf8(link.target)) > TARGET_BYTES_MAX:
            raise InvalidSpec(f"the symlink {link.name!r} has an impossible target", field="tree")


def check_name(name: str) -> None:
    """Raise InvalidSpec unless ``name`` is one component of a path."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(_utf8(name)) > NAME_BYTES_MAX:
        raise InvalidSpec(f"{_short(name)} cannot be a name in a tree", field="tree")


def check_target(path: str, target: str) -> None:
    """Raise InvalidSpec when the symlink at ``path`` leaves the tree: absolute, or more ``..`` than it is deep.

    Lexical, and strict: a ``..`` after a named component could mean anything once that is a symlink itself, so
    climbing is allowed only at the target's beginning.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    if target.startswith("/") or ".." in parts[climbs:] or climbs > path.count("/"):
        raise InvalidSpec(
            f"the symlink {_short(path)} points to {_short(target)}, which may be outside the tree",
            cure="Use relative symlinks that stay inside the directory, or leave this one out.",
            field="tree",
            path=path,
        )


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidSpec(f"{text[:80]!r} is not UTF-8, which names in a tree must be", field="tree") from None


def _short(path: str) -> str:
    return repr(path if len(path) <= 120 else f"{path[:60]}…{path[-50:]}")


def _over(bound: str, limit: int, message: str) -> TooLarge:
    return TooLarge(f"{message} (bound {bound})", limit=bound, limit_value=limit)
