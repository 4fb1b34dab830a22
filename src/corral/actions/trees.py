"""Trees of inputs as directories of this machine, shared by all actions that have them; nobody ever writes to one.

A large subtree is a directory of its own, so that two input roots that differ elsewhere share it. Content is linked,
not copied. What is used for longest by nobody leaves when there are too many.
"""

import asyncio
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.actions.fetching import KnownTree
from corral.actions.input_files import InputFiles, Wanted
from corral.actions.model import ActionDirectory
from corral.blobs.turns import Turns
from corral.kernel.digest import Digest

SHARED_ENTRIES: Final = 256
"""A subtree with at least so many entries is a directory of its own."""
_LAYERS_MAX: Final = 16
_KEPT_ENTRIES: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Layer:
    """A directory of this machine and where it belongs, relative to the input root ("" for the root's own)."""

    directory: str
    path: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A subtree to lay out: its digest, its place, and the places within it that are parts of their own."""

    digest: Digest
    path: str
    holes: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Weight:
    entries: int
    total_bytes: int


class SharedTrees:
    """The folder. Owned by one process, and empty when it starts."""

    def __init__(self, folder: Path, files: InputFiles, *, total_bytes: int) -> None:
        self._folder = folder
        self._files = files
        self._total_bytes = total_bytes
        self._held: OrderedDict[str, _Weight] = OrderedDict()
        self._entries = self._bytes = 0
        self._pins: Counter[str] = Counter()
        self._turns: Turns[str] = Turns()
        self.built = 0

    def holds(self, tenant: str, owner: int, known: KnownTree) -> bool:
        """True when nothing would have to be built."""
        return all(self._name(tenant, owner, part) in self._held for part in _parts(known))

    async def hold(self, tenant: str, owner: int, known: KnownTree) -> list[Layer]:
        """The tree as layers, the root first, owned by the user id ``owner``; give them back with ``release_nowait``.

        What is lacking is made of ``files``, which must hold all of the tree's then. Raises: OSError.
        Cancellation: nothing is held.
        """
        layers: list[Layer] = []
        try:
            for part in _parts(known):
                name = self._name(tenant, owner, part)
                self._pins[name] += 1
                layers.append(Layer(name, part.path))
                async with self._turns.hold(name):
                    if name in self._held:
                        self._held.move_to_end(name)
                    else:
                        await self._build(tenant, owner, known, part, name)
        except BaseException:
            self.release_nowait(layers)
            raise
        return layers

    def release_nowait(self, layers: Sequence[Layer]) -> None:
        """They are not used any more."""
        for layer in layers:
            self._pins[layer.directory] -= 1
            if self._pins[layer.directory] <= 0:
                del self._pins[layer.directory]

    async def _build(self, tenant: str, owner: int, known: KnownTree, part: _Part, name: str) -> None:
        plan = _Plan(known.directories, part, self._files, tenant)
        weight = await asyncio.to_thread(_lay_out, plan, name, owner)
        self._held[name] = weight
        self._entries += weight.entries
        self._bytes += weight.total_bytes
        self.built += 1
        if gone := list(self._surplus()):
            await asyncio.to_thread(_remove_all, gone)

    def _surplus(self) -> Iterator[str]:
        for name in list(self._held):
            if self._entries <= _KEPT_ENTRIES and self._bytes <= self._total_bytes:
                return
            if name not in self._pins:
                weight = self._held.pop(name)
                self._entries -= weight.entries
                self._bytes -= weight.total_bytes
                yield name

    def _name(self, tenant: str, owner: int, part: _Part) -> str:
        digest = part.digest
        kind = "part" if part.path or not part.holes else "rest"
        return f"{self._folder}/{tenant}/{owner}/{digest.function.value}-{digest.hash}-{digest.size_bytes}-{kind}"


@dataclass(frozen=True, slots=True)
class _Plan:
    directories: Mapping[Digest, ActionDirectory]
    part: _Part
    files: InputFiles
    tenant: str

    def source(self, wanted: Wanted) -> str:
        return self.files.path(self.tenant, wanted)


def _parts(known: KnownTree) -> list[_Part]:
    """The root without its large subtrees, then those."""
    sizes = _sizes(known)
    large: list[tuple[int, Digest, str]] = []
    waiting = [("", known.root)]
    while waiting:
        prefix, digest = waiting.pop()
        for below in known.directories[digest].directories:
            path = f"{prefix}{below.name}"
            if sizes[below.digest] >= SHARED_ENTRIES and not set(path) & set(",:\\"):
                large.append((sizes[below.digest], below.digest, path))
            elif sizes[below.digest] >= SHARED_ENTRIES:
                waiting.append((f"{path}/", below.digest))
    large = sorted(large, key=_largest_first)[: _LAYERS_MAX - 1]
    holes = frozenset(path for _, _, path in large)
    return [_Part(known.root, "", holes), *[_Part(digest, path, frozenset()) for _, digest, path in large]]


def _largest_first(large: tuple[int, Digest, str]) -> tuple[int, str]:
    return -large[0], large[2]


def _sizes(known: KnownTree) -> dict[Digest, int]:
    """Entries by directory; the tree was checked for depth and cycles before."""
    sizes: dict[Digest, int] = {}

    def size(digest: Digest) -> int:
        if digest not in sizes:
            directory = known.directories[digest]
            own = len(directory.files) + len(directory.symlinks) + len(directory.directories)
            sizes[digest] = own + sum(size(below.digest) for below in directory.directories)
        return sizes[digest]

    size(known.root)
    return sizes


def _lay_out(plan: _Plan, name: str, owner: int) -> _Weight:
    half = f"{name}.half"
    _remove_all([half])
    os.makedirs(os.path.dirname(half), mode=0o755, exist_ok=True)
    try:
        weight = _write(plan, half, owner)
        os.rename(half, name)
    except BaseException:
        _remove_all([half])
        raise
    return weight


def _write(plan: _Plan, top: str, owner: int) -> _Weight:
    entries = total_bytes = 0
    waiting = [("", plan.part.digest)]
    while waiting:
        prefix, digest = waiting.pop()
        folder = f"{top}/{prefix}"
        os.mkdir(folder, 0o755)
        os.chown(folder, owner, owner)
        entries += 1
        if prefix.rstrip("/") in plan.part.holes and prefix:
            continue  # another layer is mounted here
        directory = plan.directories[digest]
        for file in directory.files:
            _place(plan.source((file.digest, file.executable)), f"{folder}{file.name}", owner)
            total_bytes += file.digest.size_bytes
        for link in directory.symlinks:
            os.symlink(link.target, f"{folder}{link.name}")
            os.chown(f"{folder}{link.name}", owner, owner, follow_symlinks=False)
        entries += len(directory.files) + len(directory.symlinks)
        waiting += [(f"{prefix}{below.name}/", below.digest) for below in directory.directories]
    return _Weight(entries, total_bytes)


def _place(source: str, target: str, owner: int) -> None:
    """A link to a file that is ``owner``'s; a copy when it is somebody else's already."""
    status = os.stat(source)
    if status.st_uid != owner:
        if status.st_nlink > 1:
            shutil.copyfile(source, target)
            os.chmod(target, status.st_mode & 0o777)
            os.chown(target, owner, owner)
            return
        os.chown(source, owner, owner)
    os.link(source, target)


def _remove_all(names: Sequence[str]) -> None:
    for name in names:
        if os.path.lexists(name):
            shutil.rmtree(name)
