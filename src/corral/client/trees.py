"""Directories as trees of the blob store; the only place of the client that knows how trees are kept."""

import asyncio
import os
import shutil
from pathlib import Path

from corral.blobs.local_trees import materialize, upload_directory
from corral.blobs.ports import BlobStore
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

_MINE = ""
"""The token decides the tenant; the store over REST does not look at this."""


async def upload_tree(store: BlobStore, path: Path) -> Digest:
    """Store what is missing of a local directory; the tree's digest. Raises InvalidSpec for links that lead out."""
    return await upload_directory(store, _MINE, path)


async def fetch_tree(store: BlobStore, digest: Digest, into: Path) -> None:
    """Write a tree to ``into``; into a directory that exists it is merged, files replaced one by one.

    Complete or absent where ``into`` did not exist. Raises InvalidSpec when a link in ``into`` leads elsewhere.
    """
    partial = into.with_name(f".{into.name}.{os.getpid()}.part")
    try:
        await asyncio.to_thread(partial.parent.mkdir, parents=True, exist_ok=True)
        await materialize(store, _MINE, digest, partial)
        await asyncio.to_thread(_move, partial, into)
    finally:
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InvalidSpec(f"{target}: is not a directory; the artifact was not fetched", field="output-dir")
    if not target.exists():
        source.replace(target)
        return
    for entry in source.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _move(entry, target / entry.name)
        else:
            entry.replace(target / entry.name)
