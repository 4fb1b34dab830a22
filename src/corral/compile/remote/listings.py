"""Which files lie in directories: looked up once, and again when a directory was touched. Blocks, and briefly.

A build often writes into the directory that it reads from. So one that was touched is listed again only where that is
less work than to look up again what was asked.
"""

import os
from stat import S_ISDIR
from typing import Final

from corral.compile.files import Signature, signature_of

_TRUSTED_AFTER_NS: Final = 100_000_000
"""A directory that changed later than so long ago may change again within one tick of its clock."""
_LISTED_AT_MOST: Final = 4
"""Times as many names as were asked for: to list more takes longer than to ask."""


class _Directory:
    """What is known of one. ``names`` of its files, None when they were not listed; ``answers`` that were given."""

    __slots__ = ("answers", "names", "path", "signature", "size")

    def __init__(self, path: str) -> None:
        self.path = path
        self.signature: Signature | None = None
        self.names: frozenset[str] | None = None
        self.size = 0
        self.answers: dict[str, bool] = {}

    def look(self, now_ns: int) -> bool:
        """Look again, if it was touched; True when no answer is another one now."""
        try:
            found = os.stat(self.path)
            signature = signature_of(found)
            if signature == self.signature:
                return True
            trusted = max(found.st_mtime_ns, found.st_ctime_ns) < now_ns - _TRUSTED_AFTER_NS
            self.signature = signature if trusted else None
            self.names = self._listed()
        except OSError:  # there is none, or nobody may look into it
            self.signature, self.names = None, frozenset()
        return all(self._holds(name) is answer for name, answer in self.answers.items())

    def holds(self, name: str) -> bool:
        """Whether there is a file of this name."""
        answer = self.answers.get(name)
        if answer is None:
            answer = self.answers[name] = self._holds(name)
        return answer

    def _holds(self, name: str) -> bool:
        if self.names is not None:
            return name in self.names
        try:
            return not S_ISDIR(os.stat(f"{self.path}/{name}").st_mode)
        except OSError:
            return False

    def _listed(self) -> frozenset[str] | None:
        if self.answers and self.size > _LISTED_AT_MOST * len(self.answers):
            return None
        with os.scandir(self.path) as entries:
            names = frozenset(entry.name for entry in entries if not entry.is_dir())
        self.size = len(names)
        return names


class Listings:
    """See the module. ``refresh`` before a row of questions; between two of them nothing is looked at twice."""

    def __init__(self) -> None:
        self._known: dict[str, _Directory] = {}
        self._now_ns = 0

    def refresh(self, now_ns: int) -> bool:
        """Look at all directories that were asked about; True when no answer would be another one at ``now_ns``."""
        self._now_ns = now_ns
        same = all([directory.look(now_ns) for directory in self._known.values()])
        if not same:
            self._known.clear()
        return same

    def holds(self, path: str) -> bool:
        """Whether there is a file, of any kind but a directory, at this absolute path."""
        directory, _, name = path.rpartition("/")
        known = self._known.get(directory)
        if known is None:
            known = self._known[directory] = _Directory(directory)
            known.look(self._now_ns)
        return known.holds(name)
