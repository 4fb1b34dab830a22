"""Initramfs archives: cpio in the format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).

The same entries give the same bytes: no times, no owners, numbers in order. Archives may stand one behind the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_DIRECTORY: Final = 0o040755
_FILE: Final = 0o100644
_PROGRAM: Final = 0o100755
_TRAILER: Final = "TRAILER!!!"
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, or a directory when ``content`` is None. ``path`` has no leading slash; its parents come first."""

    path: str
    content: bytes | None = None
    executable: bool = False


def archive(entries: Sequence[Entry]) -> bytes:
    """The archive, padded to whole blocks so that another one may follow."""
    packed = bytearray()
    for number, entry in enumerate(entries, start=1):
        mode = _DIRECTORY if entry.content is None else _PROGRAM if entry.executable else _FILE
        _add(packed, number, entry.path, mode, entry.content or b"")
    _add(packed, 0, _TRAILER, 0, b"")
    packed += bytes(-len(packed) % _BLOCK)
    return bytes(packed)


def _add(packed: bytearray, number: int, path: str, mode: int, content: bytes) -> None:
    name = path.encode() + b"\0"
    links = 2 if mode == _DIRECTORY else 1
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name), 0)
    packed += b"070701" + b"".join(b"%08x" % field for field in fields) + name
    packed += bytes(-len(packed) % 4)
    packed += content
    packed += bytes(-len(packed) % 4)
