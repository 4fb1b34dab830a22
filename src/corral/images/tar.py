"""A reader of tar archives that believes nothing: ustar, GNU and POSIX (pax) headers, sparse files.

The formats are those of POSIX.1-2001 (pax) and the GNU tar manual. Headers are bounded, content is streamed, and
nothing here touches the file system. Every mistake of an archive is ``TarMistake``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from corral.images.streams import PIECE, ExactReader, Truncated
from corral.kernel.errors import CorralError

_BLOCK: Final = 512
_EXTENDED_BYTES_MAX: Final = 1024**2  # of one pax header or one GNU long name
_EXTENDED_IN_ROW_MAX: Final = 8
_SPARSE_PIECES_MAX: Final = 100_000
_SIZE_MAX: Final = 2**62
_REGULAR: Final = frozenset(b"0\x007S")


class TarMistake(CorralError):
    """The archive is malformed; the message says how, without naming the archive."""


class MemberKind(StrEnum):
    """What a member of an archive is."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symlink"
    DIRECTORY = "directory"
    DEVICE = "device node"
    FIFO = "fifo"


_KINDS: Final = {
    ord("1"): MemberKind.HARD_LINK,
    ord("2"): MemberKind.SYMLINK,
    ord("3"): MemberKind.DEVICE,
    ord("4"): MemberKind.DEVICE,
    ord("5"): MemberKind.DIRECTORY,
    ord("6"): MemberKind.FIFO,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member as its headers tell it; names are as they stand there, unchecked.

    Attributes:
        stored_bytes: bytes of content in the archive.
        size_bytes: of the file, holes included.
        pieces: (offset, length) of the content's parts in a sparse file; None for a plain one.
    """

    name: bytes
    kind: MemberKind
    mode: int
    mtime_s: float
    stored_bytes: int
    size_bytes: int
    link: bytes = b""
    pieces: tuple[tuple[int, int], ...] | None = None


class TarReader:
    """Iterate over members; read the ``content`` of one before asking for the next, or it is skipped."""

    def __init__(self, stream: ExactReader) -> None:
        self._stream = stream
        self._unread = 0  # of the current member's content
        self._padding = 0
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        """Raises TarMistake. Ends at the end mark, or at the end of the stream between two members."""
        try:
            while (member := self._next()) is not None:
                yield member
        except Truncated as error:
            raise TarMistake(f"ends in the middle of a member: {error.message}") from error

    def content(self) -> Iterator[bytes]:
        """The stored bytes of the member that was given last. Raises TarMistake when they end too early."""
        while self._unread:
            piece = self._stream.some(min(self._unread, PIECE))
            if not piece:
                raise TarMistake(f"ends in the middle of a file; {self._unread} bytes are missing")
            self._unread -= len(piece)
            yield piece

    def _next(self) -> Member | None:
        for _ in self.content():
            pass
        self._stream.exactly(self._padding)
        self._padding = 0
        own: dict[bytes, bytes] = {}
        for _ in range(_EXTENDED_IN_ROW_MAX):
            block = self._header()
            if block is None:
                if own:
                    raise TarMistake("ends after the extended header of a member")
                return None
            kind = block[156]
            if kind == ord("x"):
                own.update(_pax(self._extended(block)))
            elif kind == ord("g"):
                self._global.update(_pax(self._extended(block)))
            elif kind == ord("L"):
                own[b"path"] = self._extended(block).split(b"\0", 1)[0]
            elif kind == ord("K"):
                own[b"linkpath"] = self._extended(block).split(b"\0", 1)[0]
            else:
                return self._member(block, {**self._global, **own})
        raise TarMistake(f"has more than {_EXTENDED_IN_ROW_MAX} extended headers before one member")

    def _header(self) -> bytes | None:
        first = self._stream.some(_BLOCK)
        if not first:
            return None
        block = first + self._stream.exactly(_BLOCK - len(first))
        if not block.strip(b"\0"):
            return None
        total = sum(block) - sum(block[148:156]) + 8 * 32
        if _number(block[148:156]) != total:
            raise TarMistake("has a header whose checksum is wrong")
        return block

    def _extended(self, block: bytes) -> bytes:
        size = _size(block[124:136])
        if size > _EXTENDED_BYTES_MAX:
            raise TarMistake(f"has an extended header of {size} bytes; at most {_EXTENDED_BYTES_MAX} are read")
        data = self._stream.exactly(size)
        self._stream.exactly(-size % _BLOCK)
        return data

    def _member(self, block: bytes, extended: dict[bytes, bytes]) -> Member:
        name = _text(block[0:100])
        if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
            name = prefix + b"/" + name
        name = extended.get(b"path", name)
        flag = block[156]
        kind = MemberKind.FILE if flag in _REGULAR else _KINDS.get(flag)
        if kind is None:
            raise TarMistake(f"has a member of the unknown type {bytes([flag])!r}")
        if flag in b"0\0" and name.endswith(b"/"):
            kind = MemberKind.DIRECTORY  # as before POSIX
        stored = _decimal(extended, b"size") if b"size" in extended else _size(block[124:136])
        if kind is not MemberKind.FILE:
            stored = 0  # the size of links and directories means nothing (POSIX): nothing follows
        self._unread, self._padding = stored, -stored % _BLOCK
        size, pieces = self._sparse(block, extended, stored)
        return Member(
            name=extended.get(b"GNU.sparse.name", name),
            kind=kind,
            mode=_number(block[100:108]) & 0o7777,
            mtime_s=_time(extended, block),
            stored_bytes=self._unread,
            size_bytes=size,
            link=extended.get(b"linkpath", _text(block[157:257])),
            pieces=pieces,
        )

    # ---- sparse files ----

    def _sparse(
        self, block: bytes, extended: dict[bytes, bytes], stored: int
    ) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        if block[156] == ord("S"):
            return self._old_sparse(block)
        if (extended.get(b"GNU.sparse.major"), extended.get(b"GNU.sparse.minor")) == (b"1", b"0"):
            pieces = self._sparse_map_in_content()
            return self._checked(_decimal(extended, b"GNU.sparse.realsize"), pieces)
        if b"GNU.sparse.map" in extended:
            numbers = [_decimal_of(each) for each in extended[b"GNU.sparse.map"].split(b",")]
            return self._checked(_decimal(extended, b"GNU.sparse.size"), _pairs(numbers))
        if b"GNU.sparse.size" in extended:
            raise TarMistake("has a sparse file in the format 0.0, which is not read; write it with tar --format=pax")
        return stored, None

    def _old_sparse(self, block: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
        size = _size(block[483:495])
        numbers = _sparse_numbers(block[386:482])
        more = block[482]
        while more:
            further = self._stream.exactly(_BLOCK)
            numbers += _sparse_numbers(further[:504])
            more = further[504]
            if len(numbers) > 2 * _SPARSE_PIECES_MAX:
                raise TarMistake(f"has a sparse file of more than {_SPARSE_PIECES_MAX} pieces")
        return self._checked(size, _pairs(numbers))

    def _sparse_map_in_content(self) -> tuple[tuple[int, int], ...]:
        """Format 1.0: decimal lines, padded to a block, before the content."""
        buffered = b""
        wanted: int | None = None
        while True:
            lines = buffered.split(b"\n")[:-1]
            if wanted is None and lines:
                wanted = 2 * _decimal_of(lines[0]) + 1
                if wanted > 2 * _SPARSE_PIECES_MAX + 1:
                    raise TarMistake(f"has a sparse file of more than {_SPARSE_PIECES_MAX} pieces")
            if wanted is not None and len(lines) >= wanted:
                return _pairs([_decimal_of(line) for line in lines[1:wanted]])
            if self._unread < _BLOCK or len(buffered) > 64 * _SPARSE_PIECES_MAX:
                raise TarMistake("has a sparse file without its map")
            buffered += self._stream.exactly(_BLOCK)
            self._unread -= _BLOCK

    def _checked(self, size: int, pieces: tuple[tuple[int, int], ...]) -> tuple[int, tuple[tuple[int, int], ...]]:
        end = 0
        for offset, length in pieces:
            if offset < end or offset + length > size:
                raise TarMistake("has a sparse file whose pieces overlap or lie beyond its end")
            end = offset + length
        if sum(length for _, length in pieces) != self._unread:
            raise TarMistake("has a sparse file whose pieces do not add up to its content")
        return size, pieces


def _pax(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 20)
        length = _decimal_of(data[at:space]) if space > at else 0
        record = data[space + 1 : at + length]
        if not length or at + length > len(data) or not record.endswith(b"\n") or b"=" not in record:
            raise TarMistake("has an extended header that cannot be read")
        key, _, value = record[:-1].partition(b"=")
        found[key] = value
        at += length
    return found


def _pairs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    if len(numbers) % 2:
        raise TarMistake("has a sparse file whose map is incomplete")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _sparse_numbers(area: bytes) -> list[int]:
    found = []
    for at in range(0, len(area) - len(area) % 24, 24):
        if not area[at : at + 24].strip(b"\0"):
            break
        found += [_size(area[at : at + 12]), _size(area[at + 12 : at + 24])]
    return found


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _size(field: bytes) -> int:
    value = _number(field)
    if not 0 <= value < _SIZE_MAX:
        raise TarMistake(f"has an impossible size, {value}")
    return value


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256, two's complement
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") - (1 << (8 * len(field) - 1)) * (
            field[0] == 0xFF
        )
    text = field.replace(b"\0", b" ").strip()
    try:
        return int(text, 8) if text else 0
    except ValueError as error:
        raise TarMistake("has a header with a number that is none") from error


def _decimal(extended: dict[bytes, bytes], key: bytes) -> int:
    return _decimal_of(extended.get(key, b""))


def _decimal_of(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19 or int(text) >= _SIZE_MAX:
        raise TarMistake("has an extended header with a number that is none")
    return int(text)


def _time(extended: dict[bytes, bytes], block: bytes) -> float:
    try:
        stamp = float(extended[b"mtime"]) if b"mtime" in extended else float(_number(block[136:148]))
    except (ValueError, OverflowError) as error:
        raise TarMistake("has a member with a time that is none") from error
    return stamp if 0 <= stamp < 2**33 else 0.0
