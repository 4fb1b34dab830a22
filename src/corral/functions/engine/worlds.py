"""What programs see beside their request: directories, which the worker opens, or mounts, for them.

A tree of the store is written once for all instances that see it and removed with the last of them. A volume is a
directory that the worker's owner named for the tenant.
"""

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from corral.blobs.local_trees import materialize
from corral.blobs.model import TreeBounds
from corral.blobs.ports import BlobReader
from corral.functions.engine.config import VolumeConfig
from corral.functions.model import Preopen
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec

_OPEN: Final = os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_RDONLY


class Worlds:
    """See the module. ``directory`` is emptied at the start."""

    def __init__(
        self, directory: Path, blobs: BlobReader, volumes: Mapping[str, VolumeConfig], *, tree_bytes: int
    ) -> None:
        self._directory, self._blobs, self._volumes = directory, blobs, volumes
        self._bounds = TreeBounds(total_bytes=tree_bytes)
        self._users: dict[Path, int] = {}
        self._locks: dict[Path, asyncio.Lock] = {}
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)

    def check(self, tenant: str, preopens: Sequence[Preopen]) -> None:
        """Raises InvalidSpec for a volume that is not there for this tenant."""
        for preopen in preopens:
            if not preopen.volume:
                continue
            volume = self._volumes.get(preopen.volume)
            if volume is None or tenant not in volume.tenants:
                raise InvalidSpec(f'preopens: this worker has no volume "{preopen.volume[:70]}" for this tenant')
            if preopen.writable and not volume.writable:
                raise InvalidSpec(f'preopens: volume "{preopen.volume[:70]}" is read-only on this worker')

    async def take(self, tenant: str, preopens: Sequence[Preopen]) -> tuple[list[Path], list[Path]]:
        """Directories in the order of ``preopens``, and those among them that the caller gives back.

        Raises: InvalidSpec, OSError and what reading the store raises; nothing is held then.
        """
        self.check(tenant, preopens)
        paths: list[Path] = []
        trees: list[Path] = []
        try:
            for preopen in preopens:
                path = Path(self._volumes[preopen.volume].path) if preopen.volume else self._path(tenant, preopen.tree)
                if preopen.tree:
                    self._users[path] = self._users.get(path, 0) + 1
                    trees.append(path)
                    await self._write(tenant, preopen.tree, path)
                paths.append(path)
        except BaseException:
            await self.give_back(trees)
            raise
        return paths, trees

    async def give_back(self, trees: Sequence[Path]) -> None:
        """An instance is gone. Cancellation: a tree may stay until the next start."""
        for path in trees:
            self._users[path] -= 1
            if not self._users[path]:
                del self._users[path]
                self._locks.pop(path, None)
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def _path(self, tenant: str, tree: str) -> Path:
        return self._directory / Digest.of(f"{tenant}\0{tree}".encode()).hash[:40]

    async def _write(self, tenant: str, tree: str, path: Path) -> None:
        async with self._locks.setdefault(path, asyncio.Lock()):
            if not await asyncio.to_thread(path.exists):
                await materialize(self._blobs, tenant, Digest.parse(tree), path, self._bounds)


def open_directory(path: Path) -> int:
    """A descriptor for a program's host. Raises OSError."""
    return os.open(path, _OPEN)
