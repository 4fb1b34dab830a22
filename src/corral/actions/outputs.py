"""What a command leaves: output streams, files, directories and symlinks, stored by digest in bounded memory."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from corral.actions.adapters.messages import write_tree
from corral.actions.building import TreeBuilder
from corral.actions.limits import ActionWorkerConfig
from corral.actions.machine import below_root
from corral.actions.model import (
    ActionResult,
    Command,
    OutputDirectory,
    OutputFile,
    OutputStyle,
    OutputSymlink,
)
from corral.blobs.content import file_pieces, pieces_of, write_bytes, write_stream
from corral.blobs.parallel import run_all
from corral.blobs.ports import BlobStore
from corral.kernel.digest import Digest, Digester, HashFunction
from corral.kernel.errors import InvalidSpec, NotFound
from corral.sandboxes.model import EntryKind, TreeLimits
from corral.sandboxes.sandbox import Sandbox

_AT_ONCE: Final = 8
_IN_MEMORY_BYTES: Final = 256 * 1024
_WRITE_BYTES: Final = 1024 * 1024


class Captured:
    """One output stream on its way to the store: short ones in memory, long ones in an unnamed file."""

    def __init__(self, function: HashFunction, spool: Path) -> None:
        self._spool = spool
        self._digester = Digester(function)
        self._pieces: list[bytes] = []
        self._pending_bytes = 0
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Take a piece; await what is returned, and nothing more comes meanwhile."""
        self._digester.update(data)
        self._pieces.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes < (_IN_MEMORY_BYTES if self._file is None else _WRITE_BYTES):
            return None
        return self._flush()

    async def _flush(self) -> None:
        pieces, self._pieces, self._pending_bytes = self._pieces, [], 0
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=str(self._spool), buffering=0)
        await asyncio.to_thread(_write_all, self._file, pieces)

    async def store(self, blobs: BlobStore, tenant: str, *, inline_bytes: int) -> tuple[bytes, Digest | None]:
        """The stream inline when it is short, and its digest; nothing when there is nothing."""
        digest = self._digester.digest()
        if digest.size_bytes == 0:
            return b"", None
        if self._file is None:
            data = b"".join(self._pieces)
            await blobs.write(tenant, digest, pieces_of(data))
            return data if len(data) <= inline_bytes else b"", digest
        await self._flush()
        self._file.seek(0)
        await blobs.write(tenant, digest, file_pieces(self._file))
        return b"", digest

    def close(self) -> None:
        """Free the file; idempotent."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


@dataclass(slots=True)
class _Found:
    files: list[OutputFile] = field(default_factory=list)
    directories: list[OutputDirectory] = field(default_factory=list)
    file_links: list[OutputSymlink] = field(default_factory=list)
    directory_links: list[OutputSymlink] = field(default_factory=list)
    named: list[Digest] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Stores what one command left in its sandbox.

    Attributes:
        root: where the input root lies in the sandbox.
        spool: a folder for bytes whose digest nobody knows yet.
    """

    blobs: BlobStore
    tenant: str
    function: HashFunction
    spool: Path
    root: str
    config: ActionWorkerConfig

    async def collect(self, sandbox: Sandbox, command: Command) -> tuple[ActionResult, list[Digest]]:
        """The outputs as a result that has nothing else yet, and every blob that it names.

        What the command did not make is left out: whether that is wrong, its client knows.

        Raises:
            InvalidSpec: an output is of the wrong kind: a directory for a file, a device, a socket, a fifo.
            TooLarge: over the limits for outputs.
            SandboxLost, StoreUnavailable, QuotaExceeded: as they say.
        """
        found = _Found()
        directories = frozenset(command.output_directories)
        paths = dict.fromkeys(command.outputs)
        await run_all(
            (self._take(sandbox, command, path, found, expect_directory=path in directories) for path in paths),
            at_once=_AT_ONCE,
        )
        return _as_result(found, command.style), found.named

    async def _take(
        self, sandbox: Sandbox, command: Command, path: str, found: _Found, *, expect_directory: bool
    ) -> None:
        inside = f"{self.root}/{below_root(command, path)}".rstrip("/")
        try:
            entry = await sandbox.stat(inside)
        except NotFound:
            return
        except InvalidSpec as error:
            raise InvalidSpec(f'output "{path[:100]}": {error.message}', field="output_paths") from error
        if entry.kind is EntryKind.SYMLINK:
            links = found.directory_links if expect_directory else found.file_links
            links.append(OutputSymlink(path, entry.target))
            return
        is_directory = entry.kind is EntryKind.DIRECTORY
        if command.style is OutputStyle.FILES and is_directory is not expect_directory:
            kinds = ("a directory", "a file") if is_directory else ("a file", "a directory")
            raise InvalidSpec(
                f'output "{path[:100]}" is {kinds[0]}, and the command promised {kinds[1]}', field="output_files"
            )
        if is_directory:
            await self._take_directory(sandbox, inside, path, found, as_blobs=command.root_directories)
        else:
            digest = await self._store(sandbox.read_file(inside, file_bytes=self.config.outputs_bytes))
            found.files.append(OutputFile(path, digest, entry.executable))
            found.named.append(digest)

    async def _take_directory(self, sandbox: Sandbox, inside: str, path: str, found: _Found, *, as_blobs: bool) -> None:
        limits = TreeLimits(
            total_bytes=self.config.outputs_bytes,
            entries=self.config.entries,
            file_bytes=self.config.outputs_bytes,
            depth=self.config.depth,
        )
        builder = TreeBuilder(self.function)
        async for entry, content in sandbox.read_tree(inside, limits):
            if entry.kind is EntryKind.FILE:
                digest = await self._store(content)
                builder.add_file(entry.path, digest, executable=entry.executable)
                found.named.append(digest)
            elif entry.kind is EntryKind.SYMLINK:
                builder.add_symlink(entry.path, entry.target)
            else:
                builder.add_directory(entry.path)
        built = builder.build()
        tree = await write_bytes(self.blobs, self.tenant, write_tree(built.top, built.below), function=self.function)
        found.named.append(tree)
        if as_blobs:
            for digest, data in built.blobs.items():
                await self.blobs.write(self.tenant, digest, pieces_of(data))
            found.named += built.blobs
        found.directories.append(OutputDirectory(path, tree, built.root if as_blobs else None))

    async def _store(self, content: AsyncIterator[bytes]) -> Digest:
        return await write_stream(
            self.blobs,
            self.tenant,
            content,
            spool_dir=self.spool,
            bytes_max=self.config.outputs_bytes,
            function=self.function,
        )


def _as_result(found: _Found, style: OutputStyle) -> ActionResult:
    old = style is OutputStyle.FILES
    return ActionResult(
        files=tuple(sorted(found.files, key=_path)),
        directories=tuple(sorted(found.directories, key=_path)),
        symlinks=() if old else tuple(sorted(found.file_links, key=_path)),
        file_symlinks=tuple(sorted(found.file_links, key=_path)) if old else (),
        directory_symlinks=tuple(sorted(found.directory_links, key=_path)) if old else (),
    )


def _path(output: OutputFile | OutputDirectory | OutputSymlink) -> str:
    return output.path


def _write_all(file: IO[bytes], pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[file.write(view) :]
