"""The words between the wrapper (native/cc) and the daemon; docs/reference/compile-protocol.md has the layout.

Pure. Numbers are little-endian; a frame is its length (u32) and its bytes.
"""

import struct
from typing import Final

import msgspec

PROTOCOL: Final = 1
TOKEN_BYTES: Final = 32
FRAME_BYTES_MAX: Final = 64 * 1024**2
"""Largest frame; a wrapper never sends more than 4 MiB of request, a report may carry 8 MiB of make rules."""

COMPILE: Final = 1
REPORT: Final = 2
CONTROL: Final = 3

_HIT: Final = b"\x01"
_RUN: Final = b"\x03"
_NOTE: Final = b"\x06"
PASS: Final = b"\x01\x00\x00\x00\x02"
DONE: Final = b"\x01\x00\x00\x00\x04"
WAIT: Final = b"\x01\x00\x00\x00\x05"

STDERR_IS_TERMINAL: Final = 1
RUN_HEADER_LIST: Final = 2

_LENGTH: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<BBBB32s")
_COMPILE: Final = struct.Struct("<IQQQ")
_REPORT: Final = struct.Struct("<QIQQQ")
_RUN_HEAD: Final = struct.Struct("<QIII")
HEAD_BYTES: Final = _HEAD.size


class MalformedFrame(Exception):
    """The peer is not our wrapper, or of another version."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """The first bytes of every frame to the daemon."""

    kind: int
    flags: int
    extra: int
    token: bytes


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One compile, as the wrapper was called.

    Attributes:
        umask: of the wrapper; files are made with it.
        namespace, root: inode of the mount namespace, and inode and device of its root.
        program: path of the compiler that it found.
        arguments: argv without argv[0], each word with its NUL.
        environment: ``NAME=value``, each with its NUL.
    """

    terminal: bool
    umask: int
    namespace: int
    root: tuple[int, int]
    cwd: str
    program: str
    arguments: bytes
    environment: bytes


class Report(msgspec.Struct, frozen=True, gc=False):
    """How a run ended that the daemon had asked for.

    Attributes:
        whole: False when something was too large to be captured.
        began_ns, ended_ns: wall time; lasted_ns: steady time. They disagree when the clock was set.
        dependencies: make rules, or with RUN_HEADER_LIST the lines of ``-H``.
    """

    run: int
    whole: bool
    status: int
    began_ns: int
    ended_ns: int
    lasted_ns: int
    stdout: bytes
    stderr: bytes
    dependencies: bytes


def read_head(frame: bytes) -> Head:
    """Raises MalformedFrame."""
    if len(frame) < HEAD_BYTES:
        raise MalformedFrame("a frame that is too short")
    protocol, kind, flags, extra, token = _HEAD.unpack_from(frame)
    if protocol != PROTOCOL:
        raise MalformedFrame(f"protocol {protocol}, this daemon speaks {PROTOCOL}")
    return Head(kind, flags, extra, token)


def read_ask(head: Head, frame: bytes) -> Ask:
    """Raises MalformedFrame."""
    try:
        umask, namespace, inode, device = _COMPILE.unpack_from(frame, HEAD_BYTES)
        blocks = _blocks(frame, HEAD_BYTES + _COMPILE.size, 4)
    except struct.error as error:
        raise MalformedFrame(str(error)) from error
    cwd, program = (block.decode("utf-8", "surrogateescape") for block in blocks[:2])
    terminal = bool(head.flags & STDERR_IS_TERMINAL)
    return Ask(terminal, umask, namespace, (inode, device), cwd, program, blocks[2], blocks[3])


def read_report(head: Head, frame: bytes) -> Report:
    """Raises MalformedFrame."""
    try:
        run, status, began_ns, ended_ns, lasted_ns = _REPORT.unpack_from(frame, HEAD_BYTES)
        stdout, stderr, dependencies = _blocks(frame, HEAD_BYTES + _REPORT.size, 3)
    except struct.error as error:
        raise MalformedFrame(str(error)) from error
    whole = bool(head.flags)
    return Report(run, whole, status, began_ns, ended_ns, lasted_ns, stdout, stderr, dependencies)


def words(block: bytes) -> list[str]:
    """The words of a block in which each ends with NUL. Raises MalformedFrame."""
    if not block:
        return []
    if block[-1]:
        raise MalformedFrame("a block of words that does not end with NUL")
    return block[:-1].decode("utf-8", "surrogateescape").split("\0")


def hit(status: int, stdout: bytes, stderr: bytes) -> bytes:
    """The answer that ends the wrapper: status and what to print."""
    return framed(b"".join((_HIT, _LENGTH.pack(status), _block(stdout), _block(stderr))))


def run(number: int, arguments: list[str], *, memory_word: int, header_list: bool) -> bytes:
    """Ask the wrapper to compile with ``arguments`` (without argv[0]) and to report as run ``number``.

    ``memory_word`` is the index in argv (argv[0] counts) of the word to be replaced by the name of a memory file;
    0 for none.
    """
    flags = RUN_HEADER_LIST if header_list else 0
    block = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in arguments)
    return framed(_RUN + _RUN_HEAD.pack(number, flags, memory_word, len(block)) + block)


def note(text: str) -> bytes:
    """One line for the user's stderr; an answer follows."""
    return framed(_NOTE + text.encode() + b"\n")


def control(token: bytes, message: bytes) -> bytes:
    """A frame of the command line: ``message`` is JSON."""
    return framed(_HEAD.pack(PROTOCOL, CONTROL, 0, 0, token) + message)


def framed(content: bytes) -> bytes:
    """``content`` behind its length."""
    return _LENGTH.pack(len(content)) + content


def frame_length(header: bytes | bytearray) -> int:
    """The length in the first four bytes. Raises MalformedFrame when it is out of bounds."""
    length: int = _LENGTH.unpack_from(header)[0]
    if not 0 < length <= FRAME_BYTES_MAX:
        raise MalformedFrame(f"a frame of {length} bytes")
    return length


def _block(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def _blocks(frame: bytes, at: int, count: int) -> list[bytes]:
    found = []
    for _ in range(count):
        length = _LENGTH.unpack_from(frame, at)[0]
        at += 4
        if at + length > len(frame):
            raise MalformedFrame("a block beyond its frame")
        found.append(frame[at : at + length])
        at += length
    if at != len(frame):
        raise MalformedFrame("bytes behind the last block")
    return found
