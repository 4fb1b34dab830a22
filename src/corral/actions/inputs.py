"""Input roots on a worker: fetched once, put before commands in the way that the sandbox allows.

``CopiedInputs`` works with every runtime: the tree goes into the sandbox through its agent. Runtimes that share this
machine's kernel have a faster way (``actions.adapters.overlay``), which falls back to this one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from corral.actions.fetching import Directories, KnownTree
from corral.actions.input_files import InputFiles, Wanted
from corral.blobs.machine import PIECE_BYTES
from corral.kernel.digest import Digest
from corral.sandboxes.model import EntryKind, TreeEntry
from corral.sandboxes.sandbox import Sandbox

_BATCH_ENTRIES: Final = 256
_BATCH_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Planned:
    """One entry of a tree on its way into a sandbox; ``source`` is the file of this worker that holds its content."""

    entry: TreeEntry
    source: str = ""


class CopiedInputs:
    """See ``ports.InputRoots``."""

    def __init__(self, directories: Directories, files: InputFiles) -> None:
        self.directories = directories
        self.files = files

    async def fetch(self, tenant: str, root: Digest, runtime: str) -> "CopiedRoot":
        del runtime  # every one has an agent
        known = await self.directories.tree(tenant, root)
        held = await self.files.hold(tenant, wanted_files(known))
        return CopiedRoot(self.files, tenant, known, held)


class CopiedRoot:
    """See ``ports.InputRoot``."""

    def __init__(self, files: InputFiles, tenant: str, known: KnownTree, held: Sequence[str]) -> None:
        self._files = files
        self._tenant = tenant
        self.known = known
        self._held: Sequence[str] | None = held

    @property
    def input_files(self) -> int:
        return self.known.totals.files

    @property
    def total_bytes(self) -> int:
        return self.known.totals.total_bytes

    @asynccontextmanager
    async def staged(self, sandbox: Sandbox, directory: str, parents: Sequence[str]) -> AsyncIterator[None]:
        await sandbox.write_tree(directory, _entries(self.plan(), parents))
        yield

    def hold_also(self, held: Sequence[str]) -> None:
        """Files that were not held before; released with the others."""
        self._held = [*(self._held or ()), *held]

    def release_nowait(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._files.release_nowait(held)

    def plan(self) -> Iterator[Planned]:
        """The tree as a walk, a directory before what is in it."""
        waiting = [("", self.known.root)]
        while waiting:
            prefix, digest = waiting.pop()
            directory = self.known.directories[digest]
            for file in directory.files:
                entry = TreeEntry(
                    path=f"{prefix}{file.name}",
                    kind=EntryKind.FILE,
                    size_bytes=file.digest.size_bytes,
                    executable=file.executable,
                )
                yield Planned(entry, self._files.path(self._tenant, (file.digest, file.executable)))
            for link in directory.symlinks:
                yield Planned(TreeEntry(path=f"{prefix}{link.name}", kind=EntryKind.SYMLINK, target=link.target))
            for below in directory.directories:
                yield Planned(TreeEntry(path=f"{prefix}{below.name}", kind=EntryKind.DIRECTORY))
                waiting.append((f"{prefix}{below.name}/", below.digest))


def wanted_files(known: KnownTree) -> set[Wanted]:
    """Every file of a tree, each content once for each executable bit."""
    return {(file.digest, file.executable) for directory in known.directories.values() for file in directory.files}


async def _entries(
    plan: Iterable[Planned], parents: Sequence[str]
) -> AsyncIterator[tuple[TreeEntry, AsyncIterator[bytes]]]:
    steps = iter(plan)
    while batch := _next_batch(steps):
        small = [each.source for each in batch if each.source and each.entry.size_bytes <= PIECE_BYTES]
        contents = iter(await asyncio.to_thread(_read_all, small) if small else ())
        for each in batch:
            if not each.source:
                yield each.entry, _whole(b"")
            elif each.entry.size_bytes <= PIECE_BYTES:
                yield each.entry, _whole(next(contents))
            else:
                yield each.entry, _pieces(each.source)
    for path in parents:
        yield TreeEntry(path=path, kind=EntryKind.DIRECTORY), _whole(b"")


def _next_batch(steps: Iterator[Planned]) -> list[Planned]:
    batch: list[Planned] = []
    size_bytes = 0
    for each in steps:
        batch.append(each)
        size_bytes += each.entry.size_bytes
        if len(batch) >= _BATCH_ENTRIES or size_bytes >= _BATCH_BYTES:
            break
    return batch


def _read_all(paths: Sequence[str]) -> list[bytes]:
    found = []
    for path in paths:
        with open(path, "rb", 0) as file:
            found.append(file.read())
    return found


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def _pieces(path: str) -> AsyncIterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := await asyncio.to_thread(os.read, descriptor, PIECE_BYTES):
            yield piece
    finally:
        os.close(descriptor)
