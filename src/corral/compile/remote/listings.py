"""Which files directories hold: listed once, and again when a directory was touched. Blocks, and briefly."""

import os
from typing import Final

from corral.compile.files import Signature, signature_of

_TRUSTED_AFTER_NS: Final = 100_000_000
"""A directory that changed later than so long ago may change again within one tick of its clock."""


class _Listing:
    """One directory. ``answers`` are those that were given, by name."""

    __slots__ = ("answers", "names", "signature")

    def __init__(self) -> None:
        self.signature: Signature | None = None
        self.names: frozenset[str] = frozenset()
        self.answers: dict[str, bool] = {}


class Listings:
    """See the module. ``refresh`` before a row of questions; between two of them nothing is looked at twice."""

    def __init__(self) -> None:
        self._known: dict[str, _Listing] = {}
        self._now_ns = 0

    def refresh(self, now_ns: int) -> bool:
        """Look at all directories that were asked about; True when no answer would be another one at ``now_ns``."""
        self._now_ns = now_ns
        same = True
        for directory, listing in self._known.items():
            names = _looked_at(directory, listing, now_ns)
            if names is not None:
                listing.names = names
                same = same and all((name in names) is answer for name, answer in listing.answers.items())
        if not same:
            self._known.clear()
        return same

    def holds(self, path: str) -> bool:
        """Whether there is a file, of any kind but a directory, at this absolute path."""
        directory, _, name = path.rpartition("/")
        listing = self._known.get(directory)
        if listing is None:
            listing = self._known[directory] = _Listing()
            listing.names = _looked_at(directory, listing, self._now_ns) or frozenset()
        answer = listing.answers[name] = name in listing.names
        return answer


def _looked_at(directory: str, listing: _Listing, now_ns: int) -> frozenset[str] | None:
    """The names of files; None when they are the known ones."""
    try:
        found = os.stat(directory)
        signature = signature_of(found)
        if signature == listing.signature:
            return None
        with os.scandir(directory) as entries:
            names = frozenset(entry.name for entry in entries if not entry.is_dir())
    except OSError:  # there is none, or nobody may look into it
        listing.signature = None
        return frozenset()
    trusted = max(found.st_mtime_ns, found.st_ctime_ns) < now_ns - _TRUSTED_AFTER_NS
    listing.signature = signature if trusted else None
    return names
