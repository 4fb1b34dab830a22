"""Secrets never reach a log, however the bytes are cut into chunks. Pure; nothing here waits.

A masker holds back the end of what it saw for as long as that could be the beginning of a secret, so at most one
byte less than the longest secret. Overlapping secrets are masked together.
"""

import re
from collections.abc import Iterable
from typing import Final

MASK: Final = b"***"


class Masker:
    """Masks the given secrets in one stream of bytes; give it no empty secret."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._secrets = tuple(sorted({secret for secret in secrets if secret}, key=len, reverse=True))
        self._starts = re.compile(b"(?=(" + b"|".join(map(re.escape, self._secrets)) + b"))", re.DOTALL)
        self._held = b""
        self._covered = 0  # so many of the held bytes end a secret that is masked already
        self._after_mask = False  # what was shown last is a mask: a secret that follows at once needs no other

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; returns what may be shown now."""
        buffer = self._held + data
        keep = self._could_begin(buffer)
        shown, self._covered = self._mask(buffer, len(buffer) - keep)
        self._held = buffer[len(buffer) - keep :]
        return shown

    def finish(self) -> bytes:
        """Nothing more will come; returns what was held back."""
        shown, self._covered = self._mask(self._held, len(self._held))
        self._held = b""
        return shown

    def _mask(self, buffer: bytes, end: int) -> tuple[bytes, int]:
        """``buffer[:end]`` masked, and how many bytes after ``end`` belong to a secret that began before it."""
        pieces: list[bytes] = []
        if end == 0:
            return b"", self._covered
        position = self._covered  # up to here everything is shown or masked; its mask was shown earlier
        if any(secret in buffer for secret in self._secrets):
            for match in self._starts.finditer(buffer):
                start = match.start()
                if start >= end:
                    break
                if start > position or (position == 0 and not self._after_mask):
                    pieces += (buffer[position:start], MASK)
                position = max(position, match.end(1))
        self._after_mask = position >= end
        if position < end:
            pieces.append(buffer[position:end])
        return b"".join(pieces), max(0, position - end)

    def _could_begin(self, buffer: bytes) -> int:
        """How many bytes at the end of ``buffer`` could be the beginning of a secret."""
        longest = 0
        for secret in self._secrets:
            tail = buffer[-(len(secret) - 1) :] if len(secret) > 1 else b""
            at = tail.find(secret[:1])
            while at >= 0 and len(tail) - at > longest:
                if secret.startswith(tail[at:]):
                    longest = len(tail) - at
                    break
                at = tail.find(secret[:1], at + 1)
        return longest
