"""Plugin ``caches``: directories that outlive a run.

A *named* cache is read-write and exclusive: two runs of one cache at the same time on one worker have an instance
each. Its content is moved into the sandbox before the command and out of it afterwards, whatever the exit status; a
run that was aborted, or lost its sandbox, leaves the old content. A *tree* cache is a private copy of a tree in the
store: what the command changes there is forgotten. Caches belong to a tenant; no other tenant's run ever sees them.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from corral.blobs.content import pieces_of
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, TooLarge
from corral.sandboxes.model import GIB, EntryKind, ExecResult, TreeEntry, TreeLimits
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.core_fields import digest_mistakes, refuse
from corral.tasks.paths import below, printable, relative_path_mistake
from corral.tasks.plugin import Plugin, RunContext, TaskPlugin
from corral.tasks.plugins.cache_shelf import Instance, Shelf, write_new_file
from corral.tasks.transfer import put_tree

CACHES_MAX: Final = 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PIECE_BYTES: Final = 256 * 1024


class CacheSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cache: either a name (read-write, exclusive) or a tree (a private copy)."""

    path: Annotated[str, msgspec.Meta(description="Directory, relative to the working directory")]
    name: Annotated[str, msgspec.Meta(description="A cache of this tenant, kept on the worker")] = ""
    tree: Annotated[str, msgspec.Meta(description="The digest of a tree, copied in and never out")] = ""

    def __post_init__(self) -> None:
        mistakes = []
        if problem := relative_path_mistake(self.path):
            mistakes.append(f"path: {problem}")
        if bool(self.name) == bool(self.tree):
            mistakes.append("name: exactly one of name and tree says what the cache is")
        if self.name and _NAME.fullmatch(self.name) is None:
            mistakes.append(
                f'name: "{printable(self.name)}" is no name of a cache; use up to 100 letters, digits, ".", "_" and "-"'
            )
        if self.tree:
            mistakes += digest_mistakes(self.tree, "tree")
        refuse(mistakes)


class CacheFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Payload fields."""

    caches: Annotated[tuple[CacheSpec, ...], msgspec.Meta(description="Directories that outlive the run")] = ()

    def __post_init__(self) -> None:
        refuse(list(self._mistakes()))

    def _mistakes(self) -> Iterator[str]:
        if len(self.caches) > CACHES_MAX:
            yield f"caches: there are {len(self.caches)}; at most {CACHES_MAX} are allowed"
        for index, each in enumerate(self.caches):
            for other, earlier in enumerate(self.caches[:index]):
                if each.name and each.name == earlier.name:
                    yield f'caches[{index}].name: "{each.name}" is also caches[{other}]; a cache is mounted once'
                if f"{each.path}/".startswith(f"{earlier.path}/") or f"{earlier.path}/".startswith(f"{each.path}/"):
                    yield f'caches[{index}].path: "{printable(each.path)}" overlaps the path of caches[{other}]'


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``total_bytes`` is the budget of all caches together, kept between runs; the others bound one cache."""

    total_bytes: int = 20 * GIB
    cache_bytes_max: int = 10 * GIB
    entries_max: int = 1_000_000

    def __post_init__(self) -> None:
        if self.total_bytes < 0 or self.cache_bytes_max < 1 or self.entries_max < 1:
            raise ValueError("total_bytes must not be negative, cache_bytes_max and entries_max at least 1")


class CachePlugin(Plugin):
    """Keeps caches below one directory that it owns."""

    name = "cache"
    fields = CacheFields

    def __init__(self, root: Path, clock: Clock, config: CacheConfig | None = None) -> None:
        self.config = config or CacheConfig()
        self.clock = clock
        self.shelf = Shelf(root, total_bytes=self.config.total_bytes)
        self._opening = asyncio.Lock()
        self._opened = False

    def attach(self, run: RunContext, fields: Any) -> TaskPlugin | None:
        if fields is None or not fields.caches:
            return None
        return _Mounted(self, run, fields.caches)

    async def open(self) -> None:
        """Find the caches of an earlier process; done once, before the first use."""
        async with self._opening:
            if not self._opened:
                await asyncio.to_thread(self.shelf.open)
                self._opened = True

    async def evict(self) -> None:
        """Keep the budget; called between runs."""
        if self.shelf.over_budget:
            async with self._opening:
                await asyncio.to_thread(self.shelf.evict)


class _Mounted(TaskPlugin):
    """The caches of one run."""

    def __init__(self, plugin: CachePlugin, run: RunContext, specs: tuple[CacheSpec, ...]) -> None:
        self._plugin = plugin
        self._run = run
        self._specs = specs
        self._taken: list[tuple[CacheSpec, Instance]] = []

    async def start(self, sandbox: Sandbox) -> None:
        await self._plugin.open()
        for index, spec in enumerate(self._specs):
            if spec.tree:
                await self._copy_tree(index, spec, sandbox)
                continue
            instance = self._plugin.shelf.take_nowait(self._run.tenant, spec.name)
            self._taken.append((spec, instance))
            entries = _entries(instance.content)
            await sandbox.write_tree(below(self._run.work, spec.path), entries, self._limits)

    async def stopped(self, result: ExecResult, sandbox: Sandbox) -> bool:
        for spec, instance in self._taken:
            await self._move_out(spec, instance, sandbox)
        return True

    async def dispose(self) -> None:
        now_s = self._plugin.clock.now_s()
        for _, instance in self._taken:
            self._plugin.shelf.give_back_nowait(instance, now_s=now_s)
        self._taken.clear()
        await self._plugin.evict()

    @property
    def _limits(self) -> TreeLimits:
        config = self._plugin.config
        return TreeLimits(
            total_bytes=config.cache_bytes_max, file_bytes=config.cache_bytes_max, entries=config.entries_max
        )

    async def _copy_tree(self, index: int, spec: CacheSpec, sandbox: Sandbox) -> None:
        run = self._run
        try:
            await put_tree(sandbox, run.blobs, run.tenant, Digest.parse(spec.tree), below(run.work, spec.path))
        except NotFound as error:
            raise InvalidSpec(f"payload.caches[{index}].tree: {spec.tree} is not in the store") from error
        run.inputs.append(spec.tree)

    async def _move_out(self, spec: CacheSpec, instance: Instance, sandbox: Sandbox) -> None:
        shelf = self._plugin.shelf
        incoming = await asyncio.to_thread(shelf.incoming, instance)
        try:
            size_bytes = await _save(sandbox, below(self._run.work, spec.path), incoming, self._limits)
        except (NotFound, InvalidSpec, TooLarge) as error:
            await asyncio.to_thread(shelf.discard, instance)
            self._run.log.line(f'cache "{spec.name}" is not kept: {error.message}')
            return
        await asyncio.to_thread(shelf.replace, instance, size_bytes=size_bytes, now_s=self._plugin.clock.now_s())


async def _save(sandbox: Sandbox, path: str, into: Path, limits: TreeLimits) -> int:
    """Write what is at ``path`` of the sandbox below ``into``; the bytes of its files."""
    size_bytes = 0
    tree = sandbox.read_tree(path, limits)
    async for entry, content in tree:
        if not entry.path:
            raise InvalidSpec("it is no directory any more")
        target = into / entry.path
        match entry.kind:
            case EntryKind.DIRECTORY:
                target.mkdir(mode=0o700)
            case EntryKind.SYMLINK:
                os.symlink(entry.target, target)
            case EntryKind.FILE:
                size_bytes += await _save_file(target, content, executable=entry.executable)
    return size_bytes


async def _save_file(target: Path, content: AsyncIterator[bytes], *, executable: bool) -> int:
    size_bytes = 0
    with os.fdopen(write_new_file(target, executable=executable), "wb", buffering=0) as file:
        async for piece in content:
            size_bytes += len(piece)
            if len(piece) < _PIECE_BYTES:
                file.write(piece)  # into the page cache: cheaper than a thread
            else:
                await asyncio.to_thread(file.write, piece)
    return size_bytes


async def _entries(root: Path) -> AsyncIterator[tuple[TreeEntry, AsyncIterator[bytes]]]:
    """What is below ``root``, a directory before what is in it; symlinks are never followed. Nothing when absent."""
    waiting = [""]
    while waiting:
        here = waiting.pop()
        for item in await asyncio.to_thread(_scan, root / here):
            path = f"{here}/{item.name}" if here else item.name
            if item.is_symlink():
                yield TreeEntry(path=path, kind=EntryKind.SYMLINK, target=os.readlink(item.path)), pieces_of(b"")
            elif item.is_dir(follow_symlinks=False):
                yield TreeEntry(path=path, kind=EntryKind.DIRECTORY), pieces_of(b"")
                waiting.append(path)
            else:
                stat = item.stat(follow_symlinks=False)
                executable = bool(stat.st_mode & 0o100)
                entry = TreeEntry(path=path, kind=EntryKind.FILE, size_bytes=stat.st_size, executable=executable)
                yield entry, _content(Path(item.path))


def _scan(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as items:
            return sorted(items, key=lambda item: item.name)
    except FileNotFoundError:
        return []  # a cache that was never filled


async def _content(path: Path) -> AsyncIterator[bytes]:
    with open(path, "rb", buffering=0) as file:  # noqa: ASYNC230 (the worker's own disk; a thread costs more)
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
