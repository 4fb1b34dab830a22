"""A tree as a tar stream (POSIX.1-2001 pax), made while it is sent; memory does not grow with its size."""

import tarfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from corral.blobs.model import NodeKind, TreeNode
from corral.blobs.ports import BlobReader
from corral.blobs.trees import walk_tree
from corral.kernel.digest import Digest

_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = b"\0" * (2 * _BLOCK)


async def tar_of_tree(store: BlobReader, tenant: str, digest: Digest) -> AsyncGenerator[bytes, None]:
    """The bytes of the archive. Raises (on iteration) what ``walk_tree`` and ``BlobReader.read`` raise."""
    async with aclosing(walk_tree(store, tenant, digest)) as nodes:
        async for node in nodes:
            yield _header(node)
            if node.kind is NodeKind.FILE and node.digest is not None:
                async for piece in store.read(tenant, node.digest):
                    yield piece
                yield b"\0" * (-node.digest.size_bytes % _BLOCK)
    yield _END


def _header(node: TreeNode) -> bytes:
    info = tarfile.TarInfo(node.path)
    info.mode = 0o755 if node.executable or node.kind is NodeKind.DIRECTORY else 0o644
    if node.kind is NodeKind.DIRECTORY:
        info.type = tarfile.DIRTYPE
    elif node.kind is NodeKind.SYMLINK:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, node.target, 0o777
    elif node.digest is not None:
        info.size = node.digest.size_bytes
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
