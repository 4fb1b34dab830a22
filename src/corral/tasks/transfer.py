"""Between a sandbox and the blob store, both ways, as streams: files as blobs, directories as trees."""

import posixpath
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from corral.blobs.content import pieces_of, write_stream
from corral.blobs.model import NodeKind
from corral.blobs.ports import BlobStore
from corral.blobs.tree_machine import check_target
from corral.blobs.trees import TreeBuilder, walk_tree
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec
from corral.sandboxes.model import EntryKind, TreeEntry, TreeLimits
from corral.sandboxes.sandbox import Sandbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What came out of a sandbox: a blob or a tree, the bytes of its files, and the symlinks that were left out."""

    digest: Digest
    size_bytes: int
    executable: bool = False
    left_out: tuple[str, ...] = ()


async def put_file(
    sandbox: Sandbox, blobs: BlobStore, tenant: str, digest: Digest, path: str, *, executable: bool = False
) -> None:
    """Write a blob to a file. Raises: NotFound, StoreUnavailable, TooLarge, InvalidSpec, SandboxLost."""
    directory, name = posixpath.split(path)
    entry = TreeEntry(path=name, kind=EntryKind.FILE, size_bytes=digest.size_bytes, executable=executable)
    await sandbox.write_tree(directory, _single(entry, blobs, tenant, digest))


async def put_tree(sandbox: Sandbox, blobs: BlobStore, tenant: str, digest: Digest, directory: str) -> None:
    """Write a tree below ``directory``. Raises: as :func:`put_file`."""
    await sandbox.write_tree(directory, _entries(blobs, tenant, digest))


async def take_file(
    sandbox: Sandbox, blobs: BlobStore, tenant: str, path: str, *, spool_dir: Path, file_bytes: int
) -> Taken:
    """Store a file of the sandbox. Raises: NotFound, InvalidSpec (no regular file), TooLarge, StoreUnavailable."""
    executable = (await sandbox.stat(path)).executable
    content = sandbox.read_file(path, file_bytes=file_bytes)
    digest = await write_stream(blobs, tenant, content, spool_dir=spool_dir, bytes_max=file_bytes)
    return Taken(digest=digest, size_bytes=digest.size_bytes, executable=executable)


async def take_tree(
    sandbox: Sandbox, blobs: BlobStore, tenant: str, path: str, *, spool_dir: Path, limits: TreeLimits
) -> Taken:
    """Store a directory of the sandbox as a tree; symlinks that lead out of it are left out.

    Raises: NotFound, InvalidSpec (no directory, or it holds a device, socket or fifo), TooLarge, StoreUnavailable.
    """
    builder = TreeBuilder()
    left_out: list[str] = []
    tree = sandbox.read_tree(path, limits)
    async for entry, content in tree:
        match entry.kind:
            case EntryKind.DIRECTORY:
                builder.add_directory(entry.path)
            case EntryKind.FILE:
                digest = await write_stream(blobs, tenant, content, spool_dir=spool_dir, bytes_max=limits.file_bytes)
                builder.add_file(entry.path, digest, executable=entry.executable)
            case EntryKind.SYMLINK if _leads_out(entry):
                left_out.append(entry.path)
            case EntryKind.SYMLINK:
                builder.add_symlink(entry.path, entry.target)
    digest = await builder.store(blobs, tenant)
    return Taken(digest=digest, size_bytes=builder.size().total_bytes, left_out=tuple(left_out))


async def _single(
    entry: TreeEntry, blobs: BlobStore, tenant: str, digest: Digest
) -> AsyncIterator[tuple[TreeEntry, AsyncIterator[bytes]]]:
    yield entry, blobs.read(tenant, digest)


async def _entries(
    blobs: BlobStore, tenant: str, digest: Digest
) -> AsyncIterator[tuple[TreeEntry, AsyncIterator[bytes]]]:
    async with aclosing(walk_tree(blobs, tenant, digest)) as nodes:
        async for node in nodes:
            size_bytes = 0
            content: AsyncIterator[bytes] = pieces_of(b"")
            if node.kind is NodeKind.FILE and node.digest is not None:
                size_bytes, content = node.digest.size_bytes, blobs.read(tenant, node.digest)
            entry = TreeEntry(
                path=node.path,
                kind=EntryKind(node.kind.value),
                size_bytes=size_bytes,
                executable=node.executable,
                target=node.target,
            )
            yield entry, content


def _leads_out(entry: TreeEntry) -> bool:
    try:
        check_target(entry.path, entry.target)
    except InvalidSpec:
        return True
    return False
