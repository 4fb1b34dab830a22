"""Files and trees through a link, both ways, as streams in bounded memory.

What comes out is checked again although the agent checked it: paths, order, sizes and counts.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Final, TypeVar

from corral.kernel.errors import CorralError, InvalidSpec, NotFound, SandboxLost, TooLarge
from corral.kernel.units import format_size
from corral.sandboxes.link import protocol
from corral.sandboxes.link.link import Link
from corral.sandboxes.link.protocol import Frame, ProtocolError
from corral.sandboxes.link.streams import Stream
from corral.sandboxes.model import EntryKind, Space, TreeEntry, TreeLimits

_ERRORS: Final[dict[int, type[CorralError]]] = {
    protocol.FILE_NOT_FOUND: NotFound,
    protocol.FILE_REFUSED: InvalidSpec,
    protocol.FILE_TOO_LARGE: TooLarge,
    protocol.FILE_NO_SPACE: TooLarge,
    protocol.FILE_DENIED: InvalidSpec,
    protocol.FILE_FAILED: InvalidSpec,
}

T = TypeVar("T")

Entries = AsyncIterable[tuple[TreeEntry, AsyncIterable[bytes]]]


async def put_tree(link: Link, directory: str, entries: Entries, limits: TreeLimits) -> tuple[int, int]:
    """Write entries below ``directory``, which is made when it is missing. (entries, bytes) that were written.

    Parents of an entry are made; an existing file or symlink of an entry's name is replaced, never followed.

    Raises:
        InvalidSpec: a path, kind or parent that is refused, or content that is not as long as its entry says.
        TooLarge: a limit, or the sandbox's folder is full.
        SandboxLost: the sandbox died.
    Cancellation: what was written stays, a half-written file does not.
    """
    stream = link.open_stream(protocol.T_PUT, protocol.encode_put(directory, make_base=True))
    try:
        budget = _Budget(limits)
        async for entry, content in entries:
            budget.count_entry(entry)
            if not await stream.wait_credit():
                break
            stream.send_counted(protocol.T_ENTRY, protocol.encode_entry(entry))
            if entry.kind is EntryKind.FILE and not await _put_content(stream, entry, content, budget):
                break
        stream.send(protocol.T_PUT_END)
        return _decode(link, protocol.decode_done, await _answer(link, stream, protocol.T_DONE))
    finally:
        _leave(link, stream)


async def _put_content(stream: Stream, entry: TreeEntry, content: AsyncIterable[bytes], budget: "_Budget") -> bool:
    """False when the agent has ended the stream: its error waits to be read."""
    sent = 0
    async for data in content:
        view = memoryview(data)
        sent += len(view)
        budget.count_bytes(entry, len(view), sent)
        while view:
            if not (credit := await stream.wait_credit()):
                return False
            piece = view[: min(credit, protocol.DATA_BYTES_MAX)]
            stream.send_counted(protocol.T_DATA, bytes(piece))
            view = view[len(piece) :]
    if entry.size_bytes not in (sent, protocol.SIZE_UNKNOWN):
        raise InvalidSpec(f"the content of {entry.path!r} has {sent} bytes, its entry says {entry.size_bytes}")
    return True


async def get_tree(
    link: Link, path: str, limits: TreeLimits
) -> AsyncGenerator[tuple[TreeEntry, AsyncIterator[bytes]], None]:
    """What is at ``path``: a directory's entries (a directory before what is in it), or one entry with path "".

    The content of an entry is to be read before the next entry is asked for; what was not read is skipped.

    Raises:
        NotFound: nothing is there.
        InvalidSpec: it holds a device, socket or fifo, or changed while it was read.
        TooLarge: a limit.
        SandboxLost: the sandbox died, or what it sent was not a tree.
    Cancellation: safe; close the iterator.
    """
    stream = link.open_stream(protocol.T_GET, protocol.encode_get(path, limits))
    try:
        budget = _Budget(limits)
        order = _Order()
        while (frame := await _answer(link, stream, protocol.T_ENTRY, protocol.T_DONE)).type == protocol.T_ENTRY:
            entry = _decode(link, protocol.decode_entry, frame)
            if mistake := order.mistake(entry):
                raise link.broken(ProtocolError(mistake))
            budget.count_entry(entry)
            budget.count_bytes(entry, entry.size_bytes, entry.size_bytes)
            content = _get_content(link, stream, entry.size_bytes)
            yield entry, content
            async for _ in content:
                pass
    finally:
        _leave(link, stream)


async def _get_content(link: Link, stream: Stream, size: int) -> AsyncIterator[bytes]:
    while size > 0:
        data = (await _answer(link, stream, protocol.T_DATA)).payload
        size -= len(data)
        if size < 0 or not data:
            raise link.broken(ProtocolError("a file of another length than its entry says"))
        yield data


async def stat(link: Link, path: str) -> TreeEntry:
    """The entry at ``path`` (its own path is ""), not followed when it is a symlink. Raises NotFound, InvalidSpec."""
    stream = link.open_stream(protocol.T_STAT, protocol.encode_path(path))
    try:
        entry = _decode(link, protocol.decode_entry, await _answer(link, stream, protocol.T_ENTRY))
        await _answer(link, stream, protocol.T_DONE)
        return entry
    finally:
        _leave(link, stream)


async def space(link: Link, path: str) -> Space:
    """Free and total space of the file system at ``path``. Raises NotFound."""
    stream = link.open_stream(protocol.T_SPACE, protocol.encode_path(path))
    try:
        return _decode(link, protocol.decode_space, await _answer(link, stream, protocol.T_SPACE_IS))
    finally:
        _leave(link, stream)


async def _answer(link: Link, stream: Stream, *wanted: int) -> Frame:
    frame = await stream.wait_frame()
    if frame.type in wanted:
        return frame
    if frame.type != protocol.T_FILE_ERROR:
        raise link.broken(ProtocolError(f"a frame of type {frame.type} in a file operation"))
    failure = _decode(link, protocol.decode_file_error, frame)
    raise _ERRORS[failure.code](failure.message)


def _decode(link: Link, decode: Callable[[bytes], T], frame: Frame) -> T:
    try:
        return decode(frame.payload)
    except ProtocolError as error:
        raise link.broken(error) from error


def _leave(link: Link, stream: Stream) -> None:
    if not stream.ended and link.lost is None:
        stream.send(protocol.T_ABANDON)
        stream.fail(SandboxLost("the operation was given up"))
    link.forget(stream.id)


class _Budget:
    """What may still pass, by the limits."""

    def __init__(self, limits: TreeLimits) -> None:
        self._limits = limits
        self._entries = 0
        self._bytes = 0

    def count_entry(self, entry: TreeEntry) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise TooLarge(f"the tree has more than {self._limits.entries} entries")
        if entry.path and (mistake := protocol.path_mistake(entry.path)):
            raise InvalidSpec(mistake)
        if entry.path.count("/") >= self._limits.depth:
            raise TooLarge(f"{entry.path[:80]!r} is deeper than {self._limits.depth} directories")
        if entry.kind is EntryKind.SYMLINK and (not entry.target or "\0" in entry.target):
            raise InvalidSpec(f"the symlink {entry.path!r} has no usable target")

    def count_bytes(self, entry: TreeEntry, size: int, file_size: int) -> None:
        self._bytes += size
        if file_size > self._limits.file_bytes:
            raise TooLarge(f"{entry.path!r} is larger than {format_size(self._limits.file_bytes)}")
        if self._bytes > self._limits.total_bytes:
            raise TooLarge(f"the tree is larger than {format_size(self._limits.total_bytes)}")


class _Order:
    """Entries must come as a walk gives them, directory first, each name once: no entry passes through another's
    symlink or replaces another. Memory is bounded by the names of the directories that are open in the walk."""

    def __init__(self) -> None:
        self._open: list[tuple[str, set[str]]] = [("", set())]
        self._single = False

    def mistake(self, entry: TreeEntry) -> str:
        if self._single or (not entry.path and self._open != [("", set())]):
            return "an entry beside the only one"
        if not entry.path:
            self._single = True
            return ""
        parent, _, name = entry.path.rpartition("/")
        while self._open and self._open[-1][0] != parent:
            self._open.pop()
        if not self._open:
            return f"{entry.path!r} before its directory"
        names = self._open[-1][1]
        if name in names:
            return f"{entry.path!r} twice"
        names.add(name)
        if entry.kind is EntryKind.DIRECTORY:
            self._open.append((entry.path, set()))
        return ""
