"""Hashes of files, remembered while the files stay untouched.

A file counts as untouched while modification time, change time, size, inode and device are the same. Time stamps have
a granularity: a file that was changed just before it was hashed may change once more within the same tick and look
untouched, so a hash is trusted only when the file was older than ``TICK_S`` when it was taken (git calls such entries
racy). A clock that was set back makes files look young, and then they are hashed each time: slower, never wrong.

Not safe for threads except :meth:`FileTable.add`; the daemon's loop owns it.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from stat import S_ISREG
from typing import Final, TypeAlias

import blake3

from corral.compile.model import FileTraits

TICK_S: Final = 0.1
FILE_BYTES_MAX: Final = 256 * 1024**2
"""A larger source or header is not for us."""

Signature: TypeAlias = tuple[int, int, int, int, int]


class FileEntry:
    """What is known of one file.

    Attributes:
        signature: None when the hash must not be trusted next time.
        modified_ns: of its content, wall nanoseconds.
        changed_ns: of anything about it, whatever came last.
    """

    __slots__ = ("changed_ns", "hash", "modified_ns", "path", "signature", "size_bytes", "traits")

    def __init__(
        self, path: str, found: os.stat_result, content_hash: str, traits: FileTraits, *, trusted: bool
    ) -> None:
        self.path = path
        self.signature = signature_of(found) if trusted else None
        self.modified_ns = found.st_mtime_ns
        self.changed_ns = max(found.st_mtime_ns, found.st_ctime_ns)
        self.size_bytes = found.st_size
        self.hash = content_hash
        self.traits = traits


def signature_of(found: os.stat_result) -> Signature:
    """What changes when a file changes."""
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def read_entry(path: str, traits_of: Callable[[bytes], FileTraits], *, now_s: float) -> FileEntry | None:
    """Hash the file at ``path``; None when it is no readable regular file, or changed meanwhile. Safe in any thread."""
    try:
        descriptor = open_unblocked(path)
        try:
            before = os.fstat(descriptor)
            if not S_ISREG(before.st_mode) or before.st_size > FILE_BYTES_MAX:
                return None
            content = read_whole(descriptor, before.st_size)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    if signature_of(after) != signature_of(before) or len(content) != before.st_size:
        return None
    trusted = max(before.st_mtime_ns, before.st_ctime_ns) / 1e9 < now_s - TICK_S
    return FileEntry(path, before, blake3.blake3(content).hexdigest(), traits_of(content), trusted=trusted)


def open_unblocked(path: str) -> int:
    """Open for reading; a name may lead to a pipe, and opening one would wait for a writer. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def read_whole(descriptor: int, size: int) -> bytes:
    """At most ``size`` bytes. Raises OSError."""
    data = os.read(descriptor, size)
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


class FileTable:
    """The hashes of up to ``entries_max`` files, least recently added out first."""

    def __init__(
        self, traits_of: Callable[[bytes], FileTraits], now_s: Callable[[], float], *, entries_max: int = 200_000
    ) -> None:
        self._traits_of = traits_of
        self._now_s = now_s
        self._entries_max = entries_max
        self._entries: OrderedDict[str, FileEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def matches(self, path: str, content_hash: str) -> bool:
        """Tell whether the file at ``path`` has this hash now: one stat when it was seen before and is untouched."""
        entry = self.entry(path)
        return entry is not None and entry.hash == content_hash

    def all_match(self, pairs: list[tuple[str, str]]) -> bool:
        """Tell whether all these files have these hashes now. The inner loop of every hit."""
        entries, stat = self._entries, os.stat
        try:
            for path, content_hash in pairs:
                known = entries.get(path)
                if known is None or (signature := known.signature) is None:
                    if not self.matches(path, content_hash):
                        return False
                    continue
                if known.hash != content_hash:
                    if not self.matches(path, content_hash):  # it may have changed back
                        return False
                    continue
                found = stat(path)
                if (
                    found.st_mtime_ns != signature[0]
                    or found.st_ctime_ns != signature[1]
                    or found.st_size != signature[2]
                    or found.st_ino != signature[3]
                    or found.st_dev != signature[4]
                ) and not self.matches(path, content_hash):
                    return False
        except OSError:
            return False
        return True

    def entry(self, path: str) -> FileEntry | None:
        """See ``ports.FileHashes``."""
        known = self._entries.get(path)
        if known is not None and known.signature is not None:
            try:
                if signature_of(os.stat(path)) == known.signature:
                    return known
            except OSError:
                return None
        fresh = read_entry(path, self._traits_of, now_s=self._now_s())
        if fresh is not None:
            self.add(fresh)
        return fresh

    def known(self, path: str) -> FileEntry | None:
        """See ``ports.FileHashes``."""
        return self._entries.get(path)

    def add(self, entry: FileEntry) -> None:
        """Remember what another thread read."""
        self._entries[entry.path] = entry
        while len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

    def read(self, path: str) -> FileEntry | None:
        """Like :meth:`entry` for other threads: nothing is remembered, the caller adds it."""
        known = self._entries.get(path)
        if known is not None and known.signature is not None:
            try:
                if signature_of(os.stat(path)) == known.signature:
                    return known
            except OSError:
                return None
        return read_entry(path, self._traits_of, now_s=self._now_s())
