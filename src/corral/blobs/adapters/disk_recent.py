"""What this process lately saw on the disk, so that it need not ask again at once.

The modification time of a blob's file is its last use, which is put on record only when the one that is there is some
seconds old. For just so long a look at the file would change nothing, and no eviction may take the blob: whoever
remembers the record need not look. Who removes a blob, in whatever process, changes a mark that all of them map;
whoever sees it changed forgets everything. Only damage from outside is seen that much later.
"""

import mmap
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.blobs.model import WritePolicy
from corral.kernel.digest import Digest

CONTENT_BYTES_MAX: Final = 4096
"""Content up to this size is remembered, too: messages, small sources, the words of a tool."""
LONG_AGO_S: Final = 0.0
"""The last use of a blob of which it is not known."""
_MARK_BYTES: Final = 8
_NEVER: Final = b""
Key = tuple[str, Digest]
"""A blob: its tenant and digest."""


@dataclass(frozen=True, slots=True)
class Use:
    """A blob's file, as one look found it.

    Attributes:
        used_s: the last use that is on record.
        settled: it survives a loss of power.
    """

    used_s: float
    settled: bool


class RemovalMark:
    """Some bytes of the store's folder that change with every removal. Opened and closed with the store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None

    def open(self) -> None:
        """Raises OSError."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < _MARK_BYTES:
                os.ftruncate(descriptor, _MARK_BYTES)
            self._map = mmap.mmap(descriptor, _MARK_BYTES)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Idempotent."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def value(self) -> bytes:
        """What the mark is now."""
        return _NEVER if self._map is None else self._map[:]

    def change(self) -> None:
        """A blob was removed. Never the same value again, whoever else changes it at the same time."""
        if self._map is not None:
            self._map[:] = secrets.token_bytes(_MARK_BYTES)


class RecentBlobs:
    """Uses and small contents of the last seconds. Bounded: the oldest give way. For one thread, that of the loop."""

    def __init__(self, mark: RemovalMark, *, fresh_s: float, blobs_max: int, content_bytes_max: int) -> None:
        """
        Args:
            fresh_s: how old a use on record may be, so that no newer one is put there.
            blobs_max: so many uses are remembered,
            content_bytes_max: and contents of so many bytes.
        """
        self._mark = mark
        self._fresh_s = fresh_s
        self._blobs_max = blobs_max
        self._content_bytes_max = content_bytes_max
        self._seen = _NEVER
        self._uses: dict[Key, Use] = {}
        self._contents: dict[Key, bytes] = {}
        self._content_bytes = 0

    def look(self) -> bytes:
        """Forget what may be wrong. What is given here belongs to whatever is found from now on (``remember``)."""
        if (seen := self._mark.value()) != self._seen:
            self._seen = seen
            self._uses.clear()
            self._contents.clear()
            self._content_bytes = 0
        return seen

    def unknown(self, tenant: str, digests: Iterable[Digest], policy: WritePolicy, now_s: float) -> list[Digest]:
        """Those of which the disk must be asked: whether they are there, and durable as ``policy`` says."""
        self.look()
        uses, fresh_s = self._uses, self._fresh_s
        back = policy is WritePolicy.BACK
        unknown = []
        for digest in digests:
            use = uses.get((tenant, digest))
            if use is None or abs(now_s - use.used_s) > fresh_s or not (back or use.settled):
                unknown.append(digest)
        return unknown

    def content(self, tenant: str, digest: Digest, now_s: float) -> bytes | None:
        """All of a blob, which was verified when it was stored or read; None when the disk must be asked."""
        if self.unknown(tenant, (digest,), WritePolicy.BACK, now_s):
            return None
        return self._contents.get((tenant, digest))

    def remember(self, key: Key, use: Use, seen: bytes, content: bytes | None = None) -> None:
        """What was found, or stored, since ``look`` gave ``seen``; with its verified content where that is at hand."""
        if seen != self._seen:
            return  # something was removed meanwhile: perhaps this
        self._uses.pop(key, None)  # the newest stands last
        self._uses[key] = use
        if len(self._uses) > self._blobs_max:
            self._forget(next(iter(self._uses)))
        if content is not None and len(content) <= CONTENT_BYTES_MAX and key not in self._contents:
            self._contents[key] = content
            self._content_bytes += len(content)
            while self._content_bytes > self._content_bytes_max:
                self._drop_content(next(iter(self._contents)))

    def _forget(self, key: Key) -> None:
        del self._uses[key]
        if key in self._contents:
            self._drop_content(key)

    def _drop_content(self, key: Key) -> None:
        self._content_bytes -= len(self._contents.pop(key))
