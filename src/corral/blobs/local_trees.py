"""Trees between a store and a directory of this machine."""

import asyncio
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, ParamSpec

from corral.blobs.content import file_pieces, read_bytes
from corral.blobs.machine import PIECE_BYTES
from corral.blobs.model import NodeKind, TreeBounds, TreeNode, TreeSize
from corral.blobs.parallel import run_all
from corral.blobs.ports import BlobReader, BlobStore
from corral.blobs.trees import TreeBuilder, walk_tree
from corral.kernel.concurrency import finish
from corral.kernel.digest import Digest, Digester, HashFunction
from corral.kernel.errors import InvalidSpec

P = ParamSpec("P")

_FILES_AT_ONCE: Final = 8
_BATCH: Final = 512
_STEP_WITHIN_S: Final = 60.0
_REMOVE_WITHIN_S: Final = 60.0
_FORBIDDEN_KINDS: Final = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


async def upload_directory(
    store: BlobStore,
    tenant: str,
    path: Path,
    bounds: TreeBounds | None = None,
    *,
    function: HashFunction = HashFunction.BLAKE3,
) -> Digest:
    """Store a local directory as a tree; content that the store holds already is not sent.

    Of the modes only the executable bit (of the owner) is kept; times and owners are not.

    Raises:
        InvalidSpec: not a directory; a device, socket or fifo; a symlink that leaves it; a name that is not UTF-8;
            a file that cannot be read or changed meanwhile. The path is named.
        TooLarge: over one of ``bounds``.
        and what ``BlobStore`` raises.
    Cancellation: safe; some blobs may be stored, the tree is not.
    """
    if not await asyncio.to_thread(path.is_dir):
        raise InvalidSpec(f'"{path}" is not a directory', field="path", path=str(path))
    builder = TreeBuilder(bounds)
    stop = threading.Event()
    found = _Walk(path, builder, function, stop)
    try:
        while batch := await asyncio.to_thread(found.next_batch):
            await _upload_missing(store, tenant, batch)
    finally:
        stop.set()
    return await builder.store(store, tenant, function=function)


async def materialize(
    store: BlobReader, tenant: str, digest: Digest, into: Path, bounds: TreeBounds | None = None
) -> TreeSize:
    """Write a tree into the directory ``into``, which is made, or is empty; returns what was written.

    Files get mode 0644 or 0755. Symlinks come last, so that nothing is ever written through one.

    Raises:
        InvalidSpec: ``into`` is not empty, or what :func:`walk_tree` raises.
        OSError: the disk would not take it.
        and what ``BlobReader.read`` raises.
    When it raises, or is cancelled, everything that it wrote is removed.
    """
    made = await asyncio.to_thread(_prepare, into)
    try:
        return await _write_tree(store, tenant, digest, into, bounds)
    except BaseException:
        await finish(asyncio.to_thread(_remove, into, keep_top=not made), within_s=_REMOVE_WITHIN_S)
        raise


@dataclass(frozen=True, slots=True)
class _LocalFile:
    path: str
    digest: Digest


class _Walk:
    """Walks a local directory in threads, feeds the builder, and hands out the files in batches."""

    def __init__(self, top: Path, builder: TreeBuilder, function: HashFunction, stop: threading.Event) -> None:
        self._builder = builder
        self._function = function
        self._stop = stop
        self._files = self._walk(str(top))

    def next_batch(self) -> list[_LocalFile]:
        """The next files, hashed; empty at the end."""
        batch: list[_LocalFile] = []
        for file in self._files:
            batch.append(file)
            if len(batch) >= _BATCH:
                break
        return batch

    def _walk(self, top: str) -> Iterator[_LocalFile]:
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            folder = os.path.join(top, prefix)
            with _readable(folder), os.scandir(folder) as entries:
                for entry in entries:
                    path = f"{prefix}{entry.name}"
                    _check_text(path)
                    if entry.is_symlink():
                        self._builder.add_symlink(path, os.readlink(entry.path))
                    elif entry.is_dir(follow_symlinks=False):
                        self._builder.add_directory(path)
                        waiting.append(f"{path}/")
                    else:
                        yield self._file(entry.path, path)

    def _file(self, full_path: str, path: str) -> _LocalFile:
        with _readable(full_path), _open_regular(full_path) as file:
            digester = Digester(self._function)
            while piece := file.read(PIECE_BYTES):
                digester.update(piece)
                if self._stop.is_set():
                    raise InvalidSpec("the upload was given up", field="path")
            executable = bool(os.fstat(file.fileno()).st_mode & stat.S_IXUSR)
        self._builder.add_file(path, digester.digest(), executable=executable)
        return _LocalFile(full_path, digester.digest())


async def _upload_missing(store: BlobStore, tenant: str, files: list[_LocalFile]) -> None:
    by_digest = {file.digest: file for file in files}
    missing = await store.find_missing(tenant, by_digest)
    await run_all((_upload_file(store, tenant, by_digest[digest]) for digest in missing), at_once=_FILES_AT_ONCE)


async def _upload_file(store: BlobStore, tenant: str, file: _LocalFile) -> None:
    with _readable(file.path):
        opened = _open_regular(file.path)  # not in a thread: a cancelled open would leave its descriptor to nobody
    with opened:
        try:
            await store.write(tenant, file.digest, file_pieces(opened))
        except InvalidSpec as error:
            raise InvalidSpec(
                f'"{file.path}" changed while it was uploaded', cure="Try again.", field="path", path=file.path
            ) from error


async def _write_tree(
    store: BlobReader, tenant: str, digest: Digest, into: Path, bounds: TreeBounds | None
) -> TreeSize:
    symlinks: list[TreeNode] = []
    files = directories = total_bytes = 0
    slots = asyncio.Semaphore(_FILES_AT_ONCE)
    try:
        async with asyncio.TaskGroup() as group, aclosing(walk_tree(store, tenant, digest, bounds)) as nodes:
            async for node in nodes:
                if node.kind is NodeKind.DIRECTORY:
                    await _wholly(os.mkdir, into / node.path, 0o755)
                    directories += 1
                elif node.digest is None:
                    symlinks.append(node)
                else:
                    await slots.acquire()
                    writing = group.create_task(_write_file(store, tenant, node, node.digest, into))
                    writing.add_done_callback(lambda _task: slots.release())
                    files += 1
                    total_bytes += node.digest.size_bytes
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    await _wholly(_link, into, symlinks)
    return TreeSize(files=files, directories=directories, symlinks=len(symlinks), total_bytes=total_bytes)


async def _write_file(store: BlobReader, tenant: str, node: TreeNode, digest: Digest, into: Path) -> None:
    path, mode = into / node.path, 0o755 if node.executable else 0o644
    if digest.size_bytes <= PIECE_BYTES:
        data = await read_bytes(store, tenant, digest, bytes_max=PIECE_BYTES)
        await _wholly(_create_with, path, mode, data)
        return
    with _create(path, mode) as file:  # not in a thread, for the same reason
        async with aclosing(store.read(tenant, digest)) as pieces:
            async for piece in pieces:
                await _wholly(_write_whole, file, piece)


async def _wholly(step: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run ``step`` in a thread, to its end also when cancelled: who removes the tree after that removes all of it."""
    await finish(asyncio.to_thread(step, *args, **kwargs), within_s=_STEP_WITHIN_S)


def _open_regular(path: str) -> IO[bytes]:
    # Not blocking and not following: what was a file a moment ago may be a fifo or a symlink now.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_a_file(path, mode)
    return os.fdopen(descriptor, "rb", 0)


def _not_a_file(path: str, mode: int) -> InvalidSpec:
    kind = _FORBIDDEN_KINDS.get(stat.S_IFMT(mode), "a special file")
    return InvalidSpec(
        f'"{path}" is {kind}; a tree holds files, directories and symlinks only', field="path", path=path
    )


def _check_text(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidSpec(f"the name {os.fsencode(path)!r} is not UTF-8, which names in a tree must be") from None


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidSpec(f'"{path}" cannot be read: {error.strerror}', field="path", path=path) from error


def _prepare(into: Path) -> bool:
    try:
        into.mkdir(mode=0o755, parents=True)
    except FileExistsError:
        if not into.is_dir() or os.listdir(into):
            raise InvalidSpec(f'"{into}" is not an empty directory', field="path", path=str(into)) from None
        return False
    return True


def _remove(into: Path, *, keep_top: bool) -> None:
    for path in list(into.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not keep_top:
        into.rmdir()


def _create(path: Path, mode: int) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)  # whatever the umask says
    return os.fdopen(descriptor, "wb", 0)


def _create_with(path: Path, mode: int, data: bytes) -> None:
    with _create(path, mode) as file:
        _write_whole(file, data)


def _write_whole(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _link(into: Path, symlinks: list[TreeNode]) -> None:
    for node in symlinks:
        os.symlink(node.target, into / node.path)
