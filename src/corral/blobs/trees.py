"""Trees in a store: put one together from its nodes, walk it, measure it.

Everything that is read here may have been written by an adversary: names, targets, nesting and sizes are checked
against the bounds before they are handed out.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from corral.blobs.content import pieces_of, read_bytes
from corral.blobs.model import (
    Directory,
    DirectoryNode,
    FileNode,
    NodeKind,
    SymlinkNode,
    TreeBounds,
    TreeNode,
    TreeSize,
)
from corral.blobs.parallel import run_all
from corral.blobs.ports import BlobReader, BlobStore
from corral.blobs.tree_machine import TreeMeter, check_name, check_target, decode_directory, encode_directory
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec, NotFound

_AT_ONCE: Final = 16
_FIND_BATCH: Final = 1024


@dataclass(slots=True)
class _Folder:
    files: dict[str, FileNode] = field(default_factory=dict)
    folders: dict[str, "_Folder"] = field(default_factory=dict)
    symlinks: dict[str, SymlinkNode] = field(default_factory=dict)

    def holds(self, name: str) -> bool:
        return name in self.files or name in self.folders or name in self.symlinks


class TreeBuilder:
    """Collects the nodes of a tree in any order; directories in between need not be added.

    The content of files is stored by the caller, before or after.
    """

    def __init__(self, bounds: TreeBounds | None = None) -> None:
        self._meter = TreeMeter(bounds or TreeBounds())
        self._top = _Folder()

    def add_file(self, path: str, digest: Digest, *, executable: bool = False) -> None:
        """Add a file. Raises InvalidSpec for a bad path or one that is taken, TooLarge over a bound."""
        folder, name = self._place(path)
        self._meter.add(NodeKind.FILE, path, depth=path.count("/"), size_bytes=digest.size_bytes)
        folder.files[name] = FileNode(name=name, digest=digest, executable=executable)

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symlink. Raises also InvalidSpec when it leaves the tree."""
        folder, name = self._place(path)
        check_target(path, target)
        self._meter.add(NodeKind.SYMLINK, path, depth=path.count("/"))
        folder.symlinks[name] = SymlinkNode(name=name, target=target)

    def add_directory(self, path: str) -> None:
        """Add a directory, perhaps an empty one; one that is there already is no error."""
        self._enter(path.split("/"), path)

    def size(self) -> TreeSize:
        """The sum so far."""
        return self._meter.size()

    async def store(self, store: BlobStore, tenant: str, *, function: HashFunction = HashFunction.BLAKE3) -> Digest:
        """Write the directories that the store lacks, the top last; returns the tree's digest.

        Raises what ``BlobStore`` raises.
        """
        encoded: dict[Digest, bytes] = {}
        top = _encode(self._top, function, encoded)
        last = encoded.pop(top)
        digests = list(encoded)
        for start in range(0, len(digests), _FIND_BATCH):
            missing = await store.find_missing(tenant, digests[start : start + _FIND_BATCH])
            await run_all(
                (store.write(tenant, digest, pieces_of(encoded[digest])) for digest in missing), at_once=_AT_ONCE
            )
        await store.write(tenant, top, pieces_of(last))
        return top

    def _place(self, path: str) -> tuple[_Folder, str]:
        *parents, name = path.split("/")
        check_name(name)
        folder = self._enter(parents, path)
        if folder.holds(name):
            raise InvalidSpec(f"the path {path!r} occurs twice in the tree", field="tree", path=path)
        return folder, name

    def _enter(self, names: Sequence[str], path: str) -> _Folder:
        folder = self._top
        for depth, name in enumerate(names):
            below = folder.folders.get(name)
            if below is None:
                check_name(name)
                if folder.holds(name):
                    raise InvalidSpec(f"{path!r}: {name!r} is not a directory in the tree", field="tree", path=path)
                self._meter.add(NodeKind.DIRECTORY, path, depth=depth)
                below = folder.folders[name] = _Folder()
            folder = below
        return folder


async def walk_tree(
    store: BlobReader, tenant: str, digest: Digest, bounds: TreeBounds | None = None
) -> AsyncGenerator[TreeNode, None]:
    """Every node below the top, depth first, a directory before what is in it.

    Raises (on iteration):
        NotFound: the tree, or a directory of it, is not in the store.
        InvalidSpec: a blob that is not a directory, or names and targets that no tree may have.
        TooLarge: over one of ``bounds``; a tree that contains itself many times over ends here, too.
        and what ``BlobReader.read`` raises.
    Cancellation: safe; close the generator when leaving it early.
    """
    bounds = bounds or TreeBounds()
    meter = TreeMeter(bounds)
    (top,) = await _fetch(store, tenant, [("", digest)], bounds)
    stack = [_Level("", top, iter(()))]
    for leaf in _leaves("", top, meter, depth=0):
        yield leaf
    while stack:
        level = stack[-1]
        below = next(level.fetched, None)
        if below is None:
            batch = level.take(_AT_ONCE)
            if not batch:
                stack.pop()
                continue
            level.fetched = iter(list(zip(batch, await _fetch(store, tenant, batch, bounds), strict=True)))
            continue
        (path, its_digest), directory = below
        meter.add(NodeKind.DIRECTORY, path, depth=len(stack) - 1)
        yield TreeNode(path=path, kind=NodeKind.DIRECTORY, digest=its_digest)
        for leaf in _leaves(f"{path}/", directory, meter, depth=len(stack)):
            yield leaf
        stack.append(_Level(f"{path}/", directory, iter(())))


async def tree_size(store: BlobReader, tenant: str, digest: Digest, bounds: TreeBounds | None = None) -> TreeSize:
    """Walk the tree and add it up. Raises what :func:`walk_tree` raises."""
    files = directories = symlinks = total_bytes = 0
    async with aclosing(walk_tree(store, tenant, digest, bounds)) as nodes:
        async for node in nodes:
            files += node.kind is NodeKind.FILE
            directories += node.kind is NodeKind.DIRECTORY
            symlinks += node.kind is NodeKind.SYMLINK
            if node.kind is NodeKind.FILE and node.digest is not None:
                total_bytes += node.digest.size_bytes
    return TreeSize(files=files, directories=directories, symlinks=symlinks, total_bytes=total_bytes)


class _Level:
    """A directory that is being walked: its sub-directories that are fetched, and those still to fetch."""

    def __init__(
        self, prefix: str, directory: Directory, fetched: Iterator[tuple[tuple[str, Digest], Directory]]
    ) -> None:
        self._left = [(f"{prefix}{node.name}", node.digest) for node in reversed(directory.directories)]
        self.fetched = fetched

    def take(self, count: int) -> list[tuple[str, Digest]]:
        return [self._left.pop() for _ in range(min(count, len(self._left)))]


def _leaves(prefix: str, directory: Directory, meter: TreeMeter, *, depth: int) -> Iterator[TreeNode]:
    for file in directory.files:
        path = f"{prefix}{file.name}"
        meter.add(NodeKind.FILE, path, depth=depth, size_bytes=file.digest.size_bytes)
        yield TreeNode(path=path, kind=NodeKind.FILE, digest=file.digest, executable=file.executable)
    for link in directory.symlinks:
        path = f"{prefix}{link.name}"
        check_target(path, link.target)
        meter.add(NodeKind.SYMLINK, path, depth=depth)
        yield TreeNode(path=path, kind=NodeKind.SYMLINK, target=link.target)


async def _fetch(
    store: BlobReader, tenant: str, wanted: Sequence[tuple[str, Digest]], bounds: TreeBounds
) -> list[Directory]:
    async def fetch(path: str, digest: Digest) -> Directory:
        try:
            data = await read_bytes(store, tenant, digest, bytes_max=bounds.directory_bytes)
        except NotFound as error:
            what = f"the directory {path!r} of the tree" if path else "the tree"
            raise NotFound(f"{what}, {digest}, is not in the store", digest=str(digest)) from error
        return decode_directory(data)

    try:
        async with asyncio.TaskGroup() as group:
            fetching = [group.create_task(fetch(path, digest)) for path, digest in wanted]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in fetching]


def _encode(folder: _Folder, function: HashFunction, encoded: dict[Digest, bytes]) -> Digest:
    directories = tuple(
        DirectoryNode(name=name, digest=_encode(below, function, encoded)) for name, below in folder.folders.items()
    )
    data = encode_directory(
        Directory(files=tuple(folder.files.values()), directories=directories, symlinks=tuple(folder.symlinks.values()))
    )
    digest = Digest.of(data, function)
    encoded[digest] = data
    return digest
