"""Which directories and files an input root has: read from the store in parallel, verified, remembered.

What is remembered is bounded, and by tenant: a tenant's digest never finds another tenant's content.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from corral.actions.adapters.messages import read_directory
from corral.actions.errors import MissingBlobs
from corral.actions.limits import ActionWorkerConfig
from corral.actions.machine import TreeGuards, TreeTotals, total_of
from corral.actions.model import ActionDirectory
from corral.blobs.content import read_bytes
from corral.blobs.parallel import run_all
from corral.blobs.ports import BlobReader
from corral.kernel.digest import Digest
from corral.kernel.errors import NotFound, TooLarge

_REMEMBERED_ENTRIES: Final = 500_000
EMPTY: Final = ActionDirectory()


@dataclass(frozen=True, slots=True)
class KnownTree:
    """A tree whose directories are all at hand: by digest, each once."""

    root: Digest
    directories: Mapping[Digest, ActionDirectory]
    totals: TreeTotals
    weight: int


class Directories:
    """Reads trees of one store; remembers the latest."""

    def __init__(self, blobs: BlobReader, config: ActionWorkerConfig) -> None:
        self._blobs = blobs
        self._config = config
        self._guards = TreeGuards(entries=config.entries, total_bytes=config.input_bytes, depth=config.depth)
        self._known: OrderedDict[tuple[str, Digest], KnownTree] = OrderedDict()
        self._weight = 0

    async def tree(self, tenant: str, root: Digest) -> KnownTree:
        """All directories of the tree.

        Raises: MissingBlobs with every directory that is not stored; InvalidSpec, TooLarge, StoreUnavailable.
        """
        key = (tenant, root)
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        directories = await self._read_all(tenant, root)
        totals = total_of(root, directories, self._guards)
        weight = sum(1 + len(each.files) + len(each.directories) + len(each.symlinks) for each in directories.values())
        known = KnownTree(root, directories, totals, weight)
        self._known[key] = known
        self._weight += weight
        while self._weight > _REMEMBERED_ENTRIES and self._known:
            self._weight -= self._known.popitem(last=False)[1].weight
        return known

    async def _read_all(self, tenant: str, root: Digest) -> dict[Digest, ActionDirectory]:
        found: dict[Digest, ActionDirectory] = {}
        missing: set[Digest] = set()
        level: Collection[Digest] = (root,)
        depth = entries = 0
        while level:
            depth += 1
            if depth > self._config.depth:
                raise TooLarge(f"the tree is deeper than {self._config.depth} directories", limit="depth")

            async def read(digest: Digest) -> None:
                try:
                    found[digest] = await self._read(tenant, digest)
                except NotFound:
                    missing.add(digest)

            await run_all((read(digest) for digest in level), at_once=self._config.fetch_at_once)
            below: dict[Digest, None] = {}
            for digest in level:
                directory = found.get(digest, EMPTY)
                entries += len(directory.files) + len(directory.directories) + len(directory.symlinks)
                below.update((each.digest, None) for each in directory.directories if each.digest not in found)
            if entries > self._config.entries:
                raise TooLarge(f"the tree has more than {self._config.entries} entries", limit="entries")
            level = [digest for digest in below if digest not in missing]
        if missing:
            raise MissingBlobs(missing)
        return found

    async def _read(self, tenant: str, digest: Digest) -> ActionDirectory:
        if digest.size_bytes == 0:
            return EMPTY  # the empty blob need not be stored
        data = await read_bytes(self._blobs, tenant, digest, bytes_max=self._config.message_bytes)
        return read_directory(data, digest.function)
