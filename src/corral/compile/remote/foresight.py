"""Whether the next compile is likely to be new to everybody, so that its source may travel with the question.

Asking first and sending then costs two more round trips, which a build of new sources pays for every file; sending
unasked costs bytes, which an unchanged rebuild must not pay. So a burst of compiles begins with asking, and only after
a row of misses contents go along that were never sent from here. Then the worker need not look into the scheduler's
cache either; now and then it does all the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.compile.remote.model import Shipment
from corral.kernel.digest import Digest

_MISSES: Final = 8
_ASK_EVERY: Final = 16
_PAUSE_S: Final = 2.0
_FILE_BYTES: Final = 32 * 1024
_ALONG_BYTES: Final = 128 * 1024
_REMEMBERED_MAX: Final = 200_000


@dataclass(frozen=True, slots=True)
class Guess:
    """What to send along, and whether the worker should ask the cache."""

    contents: tuple[bytes, ...] = ()
    ask: bool = True


class Foresight:
    """See the module."""

    def __init__(self) -> None:
        self._misses = 0
        self._count = 0
        self._used_s = 0.0
        self._sent: set[Digest] = set()

    def guess(self, shipment: Shipment, *, now_s: float) -> Guess:
        """For the next compile."""
        if now_s - self._used_s > _PAUSE_S:
            self._misses = 0  # another build
        self._used_s = now_s
        if self._misses < _MISSES:
            return Guess()
        self._count += 1
        contents = _small(shipment.files, self._sent)
        return Guess(contents, ask=not contents or self._count % _ASK_EVERY == 0)

    def ended(self, shipment: Shipment, *, hit: bool, now_s: float) -> None:
        """A compile was answered."""
        self._used_s = now_s
        self._misses = 0 if hit else self._misses + 1
        if len(self._sent) > _REMEMBERED_MAX:
            self._sent.clear()
        self._sent.update(shipment.files)


def _small(files: Mapping[Digest, str], sent: set[Digest]) -> tuple[bytes, ...]:
    """The contents that were never sent, if they are small; what changed meanwhile is left for the upload to notice."""
    new = [(digest, path) for digest, path in files.items() if digest not in sent]
    if any(digest.size_bytes > _FILE_BYTES for digest, _ in new):
        return ()
    if sum(digest.size_bytes for digest, _ in new) > _ALONG_BYTES:
        return ()
    try:
        contents = tuple(Path(path).read_bytes() for _, path in new)
    except OSError:
        return ()
    return contents if all(Digest.of(data) == digest for data, (digest, _) in zip(contents, new, strict=True)) else ()
