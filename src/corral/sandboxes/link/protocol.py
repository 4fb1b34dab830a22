"""The agent protocol as bytes: constants, encoding, decoding. Nothing here does I/O.

The numbers repeat native/agent/protocol.h (a test compares them); docs/reference/agent-protocol.md explains them.
Whatever comes out of a sandbox is hostile: every decoder raises ProtocolError for it and nothing else.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from corral.sandboxes.link.setup import Reseed, Setup
from corral.sandboxes.model import EntryKind, ExecRequest, Space, TerminalSize, TreeEntry, TreeLimits, Usage

PROTOCOL_VERSION: Final = 1

FRAME_HEADER_BYTES: Final = 9
FRAME_PAYLOAD_MAX: Final = 2_097_152
DATA_BYTES_MAX: Final = 65_536
WINDOW_BYTES: Final = 262_144
STREAMS_MAX: Final = 1024
PATH_BYTES_MAX: Final = 4096
DEPTH_MAX: Final = 128
RESEED_BYTES_MAX: Final = 512
SIZE_UNKNOWN: Final = 0xFFFF_FFFF_FFFF_FFFF
GRACE_DEFAULT: Final = 4_294_967_295

T_SETUP: Final = 1
T_PING: Final = 2
T_RESET: Final = 3
T_RESEED: Final = 4
T_EXEC: Final = 10
T_STDIN: Final = 11
T_STDIN_END: Final = 12
T_SIGNAL: Final = 13
T_KILL: Final = 14
T_WINDOW: Final = 15
T_CREDIT: Final = 16
T_PUT: Final = 20
T_PUT_END: Final = 21
T_GET: Final = 22
T_STAT: Final = 23
T_SPACE: Final = 24
T_ABANDON: Final = 25
T_ENTRY: Final = 26
T_DATA: Final = 27
T_READY: Final = 64
T_SETUP_FAILED: Final = 65
T_PONG: Final = 66
T_RESET_DONE: Final = 67
T_RESEEDED: Final = 68
T_STARTED: Final = 70
T_NOT_STARTED: Final = 71
T_STDOUT: Final = 72
T_STDERR: Final = 73
T_EXIT: Final = 74
T_DONE: Final = 80
T_FILE_ERROR: Final = 81
T_SPACE_IS: Final = 82

SETUP_DROP_CAPABILITIES: Final = 1
SETUP_FORBID_USER_NAMESPACES: Final = 2
READY_IS_INIT: Final = 1
EXEC_STDIN: Final = 1
EXEC_TERMINAL: Final = 2
EXEC_USER: Final = 4
EXEC_MERGE: Final = 8
EXEC_RESET: Final = 16
EXIT_STATUS: Final = 0
EXIT_SIGNAL: Final = 1
EXIT_LEFT_PROCESSES: Final = 1
EXIT_KILLED: Final = 2
EXIT_SURVIVORS: Final = 4
EXIT_KEEPER_LOST: Final = 8
EXIT_OUT_OF_MEMORY: Final = 16
EXIT_PROCESS_LIMIT: Final = 32
EXIT_RESET: Final = 64
ENTRY_FILE: Final = 0
ENTRY_DIRECTORY: Final = 1
ENTRY_SYMLINK: Final = 2
PUT_MAKE_BASE: Final = 1
FILE_NOT_FOUND: Final = 1
FILE_REFUSED: Final = 2
FILE_TOO_LARGE: Final = 3
FILE_NO_SPACE: Final = 4
FILE_DENIED: Final = 5
FILE_FAILED: Final = 6

_HEADER: Final = struct.Struct("<IIB")
_U32: Final = struct.Struct("<I")
_EXIT: Final = struct.Struct("<BBBQQQQ")
_READY: Final = struct.Struct("<III")
_ENTRY_HEAD: Final = struct.Struct("<BBQ")
_SPACE: Final = struct.Struct("<QQQQ")
_DONE: Final = struct.Struct("<QQ")
_FROM_AGENT: Final = frozenset(
    (
        *(
            T_READY,
            T_SETUP_FAILED,
            T_PONG,
            T_RESET_DONE,
            T_RESEEDED,
            T_STARTED,
            T_NOT_STARTED,
            T_STDOUT,
            T_STDERR,
            T_EXIT,
        ),
        *(T_DONE, T_FILE_ERROR, T_SPACE_IS, T_CREDIT, T_ENTRY, T_DATA),
    )
)
_KIND_NUMBERS: Final = {
    EntryKind.FILE: ENTRY_FILE,
    EntryKind.DIRECTORY: ENTRY_DIRECTORY,
    EntryKind.SYMLINK: ENTRY_SYMLINK,
}
_KINDS: Final = {number: kind for kind, number in _KIND_NUMBERS.items()}


class ProtocolError(Exception):
    """Bytes that an honest agent never sends; the link ends with it."""


class Frame(NamedTuple):
    """One frame; ``payload`` is still encoded."""

    type: int
    stream: int
    payload: bytes


class Ready(NamedTuple):
    """The agent carried out its setup. ``notes`` says what it could not do but was only asked to try."""

    version: int
    pid: int
    is_init: bool
    notes: tuple[str, ...]


class NotStarted(NamedTuple):
    """An exec did not start; ``errno`` of the step that failed and one sentence about it."""

    errno: int
    message: str


@dataclass(frozen=True, slots=True)
class Exit:
    """An exec and its whole tree are gone. Exactly one of ``status`` and ``signal`` is given."""

    status: int | None
    signal: int | None
    usage: Usage
    left_processes: bool
    killed: bool
    survivors: bool
    keeper_lost: bool
    out_of_memory: bool = False
    process_limit: bool = False
    reset: bool = False


class FileError(NamedTuple):
    """A file operation ended badly; ``code`` is one of FILE_*."""

    code: int
    message: str


def encode_frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame as bytes. The caller keeps ``payload`` within the maximum."""
    return _HEADER.pack(len(payload), stream, kind) + payload


class FrameDecoder:
    """Cuts a byte stream into frames, wherever its pieces begin and end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames that are complete with ``data``.

        Raises:
            ProtocolError: a frame is too long or of a type that no agent sends; the stream is useless from here on.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        offset = 0
        end = len(data)
        while end - offset >= FRAME_HEADER_BYTES:
            length, stream, kind = _HEADER.unpack_from(data, offset)
            if kind not in _FROM_AGENT or length > DATA_BYTES_MAX:
                self._rest = b""
                raise ProtocolError(f"a frame of type {kind} with {length} bytes")
            start = offset + FRAME_HEADER_BYTES
            if end - start < length:
                break
            offset = start + length
            yield Frame(kind, stream, data[start:offset])
        self._rest = data[offset:]

    @property
    def buffered(self) -> int:
        """Bytes of a frame that is not complete yet; never more than one data frame and its header."""
        return len(self._rest)


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    return b"%b%b\0" % (_U32.pack(len(encoded) + 1), encoded)


def _strings(texts: Iterable[str]) -> bytes:
    return b"".join(map(_string, texts))


def encode_setup(setup: Setup) -> bytes:
    """Payload of SETUP."""
    flags = SETUP_DROP_CAPABILITIES * setup.drop_capabilities
    flags |= SETUP_FORBID_USER_NAMESPACES * setup.forbid_user_namespaces
    parts = [
        struct.pack("<III", PROTOCOL_VERSION, flags, round(setup.grace_s * 1000)),
        _string(setup.host_name),
        _U32.pack(len(setup.mounts)),
    ]
    parts += [
        struct.pack("<BQQ", mount.fresh, mount.size_bytes, mount.files) + _string(mount.path) for mount in setup.mounts
    ]
    parts += [_U32.pack(len(setup.writable)), _strings(setup.writable), _U32.pack(len(setup.rlimits))]
    parts += [
        struct.pack("<IQQ", limit.resource, limit.soft & 0xFFFF_FFFF_FFFF_FFFF, limit.hard & 0xFFFF_FFFF_FFFF_FFFF)
        for limit in setup.rlimits
    ]
    parts += [_U32.pack(len(setup.seccomp)), setup.seccomp]
    return b"".join(parts)


def encode_reseed(reseed: Reseed) -> bytes:
    """Payload of RESEED."""
    entropy = reseed.entropy[:RESEED_BYTES_MAX]
    return b"".join((struct.pack("<Q", reseed.unix_ns), _string(reseed.host_name), _U32.pack(len(entropy)), entropy))


def encode_exec(request: ExecRequest, *, stdin: bool, user: tuple[int, int] | None = None) -> bytes:
    """Payload of EXEC; ``user`` is (uid, gid)."""
    terminal = request.terminal or TerminalSize(0, 0)
    flags = EXEC_STDIN * stdin | EXEC_TERMINAL * (request.terminal is not None) | EXEC_USER * (user is not None)
    flags |= EXEC_MERGE * request.merge_output | EXEC_RESET * request.reset_after
    uid, gid = user or (0, 0)
    return b"".join(
        (
            struct.pack("<BHHII", flags, terminal.rows, terminal.columns, uid, gid),
            _string(request.cwd),
            _U32.pack(len(request.argv)),
            _strings(request.argv),
            _U32.pack(len(request.env)),
            _strings(f"{name}={value}" for name, value in request.env),
        )
    )


def encode_u32(number: int) -> bytes:
    """Payload of CREDIT and KILL."""
    return _U32.pack(number)


def encode_window(size: TerminalSize) -> bytes:
    """Payload of WINDOW."""
    return struct.pack("<HH", size.rows, size.columns)


def encode_path(path: str) -> bytes:
    """Payload of STAT and SPACE."""
    return _string(path)


def encode_put(directory: str, *, make_base: bool) -> bytes:
    """Payload of PUT: the directory below which everything is written."""
    return bytes((PUT_MAKE_BASE * make_base,)) + _string(directory)


def encode_get(path: str, limits: TreeLimits) -> bytes:
    """Payload of GET."""
    depth = min(limits.depth, DEPTH_MAX)
    return struct.pack("<QQQI", limits.total_bytes, limits.entries, limits.file_bytes, depth) + _string(path)


def encode_entry(entry: TreeEntry) -> bytes:
    """Payload of ENTRY."""
    head = _ENTRY_HEAD.pack(_KIND_NUMBERS[entry.kind], entry.executable, entry.size_bytes)
    return head + _string(entry.path) + _string(entry.target)


class _Reader:
    """Reads fields off a payload; running out of bytes is a ProtocolError."""

    def __init__(self, payload: bytes, offset: int = 0) -> None:
        self._payload = payload
        self._offset = offset

    def string(self) -> str:
        end = self._offset + 4
        if end > len(self._payload):
            raise ProtocolError("a string without its length")
        (length,) = _U32.unpack_from(self._payload, self._offset)
        text = self._payload[end : end + length]
        if length == 0 or len(text) != length or text.find(0) != length - 1:
            raise ProtocolError("a string that is cut or not closed by its only NUL")
        self._offset = end + length
        return text[:-1].decode("utf-8", "surrogateescape")

    def end(self) -> None:
        if self._offset != len(self._payload):
            raise ProtocolError("bytes behind the last field")


def _fixed(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) < layout.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes where {layout.size} belong")
    return layout.unpack_from(payload)


def _exactly(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes where {layout.size} belong")
    return layout.unpack(payload)


def decode_u32(payload: bytes) -> int:
    """Payload of CREDIT, STARTED."""
    return _exactly(_U32, payload)[0]


def decode_sentence(payload: bytes) -> str:
    """Payload of SETUP_FAILED and RESEEDED: one string."""
    reader = _Reader(payload)
    text = reader.string()
    reader.end()
    return text


def decode_ready(payload: bytes) -> Ready:
    """Payload of READY."""
    version, pid, flags = _fixed(_READY, payload)
    reader = _Reader(payload, _READY.size)
    notes = reader.string()
    reader.end()
    return Ready(version, pid, bool(flags & READY_IS_INIT), tuple(notes.splitlines()))


def decode_reset_done(payload: bytes) -> tuple[bool, str]:
    """Payload of RESET_DONE: clean or not, and what was left when not."""
    if not payload:
        raise ProtocolError("an empty RESET_DONE")
    reader = _Reader(payload, 1)
    what = reader.string()
    reader.end()
    return payload[0] == 1, what


def decode_not_started(payload: bytes) -> NotStarted:
    """Payload of NOT_STARTED."""
    (errno,) = _fixed(_U32, payload)
    reader = _Reader(payload, 4)
    message = reader.string()
    reader.end()
    return NotStarted(errno, message)


def decode_exit(payload: bytes) -> Exit:
    """Payload of EXIT."""
    how, value, flags, wall_us, user_us, system_us, peak = _exactly(_EXIT, payload)
    if how not in (EXIT_STATUS, EXIT_SIGNAL):
        raise ProtocolError(f"an exit of kind {how}")
    return Exit(
        status=value if how == EXIT_STATUS else None,
        signal=value if how == EXIT_SIGNAL else None,
        usage=Usage(
            wall_s=wall_us / 1e6, cpu_user_s=user_us / 1e6, cpu_system_s=system_us / 1e6, memory_peak_bytes=peak
        ),
        left_processes=bool(flags & EXIT_LEFT_PROCESSES),
        killed=bool(flags & EXIT_KILLED),
        survivors=bool(flags & EXIT_SURVIVORS),
        keeper_lost=bool(flags & EXIT_KEEPER_LOST),
        out_of_memory=bool(flags & EXIT_OUT_OF_MEMORY),
        process_limit=bool(flags & EXIT_PROCESS_LIMIT),
        reset=bool(flags & EXIT_RESET),
    )


def decode_entry(payload: bytes) -> TreeEntry:
    """Payload of ENTRY; the path is checked by :func:`check_path`, "" stands for the asked path itself."""
    number, executable, size = _fixed(_ENTRY_HEAD, payload)
    reader = _Reader(payload, _ENTRY_HEAD.size)
    path, target = reader.string(), reader.string()
    reader.end()
    kind = _KINDS.get(number)
    if kind is None or executable > 1 or (size and kind is not EntryKind.FILE):
        raise ProtocolError(f"an entry of kind {number}")
    if (kind is EntryKind.SYMLINK) != bool(target) or (path and (mistake := path_mistake(path))):
        raise ProtocolError(f"an entry that is not allowed: {path!r} → {target!r}" if not path else mistake)
    return TreeEntry(path=path, kind=kind, size_bytes=size, executable=bool(executable), target=target)


def decode_done(payload: bytes) -> tuple[int, int]:
    """Payload of DONE: entries and bytes."""
    entries, size = _exactly(_DONE, payload)
    return entries, size


def decode_file_error(payload: bytes) -> FileError:
    """Payload of FILE_ERROR."""
    (code,) = _fixed(_U32, payload)
    reader = _Reader(payload, 4)
    message = reader.string()
    reader.end()
    if not FILE_NOT_FOUND <= code <= FILE_FAILED:
        raise ProtocolError(f"a file error of code {code}")
    return FileError(code, message)


def decode_space(payload: bytes) -> Space:
    """Payload of SPACE_IS."""
    total, free, files_total, files_free = _exactly(_SPACE, payload)
    return Space(total_bytes=total, free_bytes=free, files_total=files_total, files_free=files_free)


def path_mistake(path: str) -> str:
    """What is wrong with a tree entry's path, or "" when nothing is. The agent applies the same rule."""
    if not path:
        return "an entry's path is empty"
    if path.startswith("/"):
        return f"{path!r} is absolute"
    if "\0" in path:
        return f"{path!r} contains a NUL"
    if len(path.encode("utf-8", "surrogateescape")) >= PATH_BYTES_MAX:
        return f"a path is longer than {PATH_BYTES_MAX - 1} bytes"
    segments = path.split("/")
    if len(segments) > DEPTH_MAX:
        return f"{path[:80]!r}… is deeper than {DEPTH_MAX} directories"
    if any(segment in ("", ".", "..") for segment in segments):
        return f"{path!r} has an empty, . or .. segment"
    return ""
