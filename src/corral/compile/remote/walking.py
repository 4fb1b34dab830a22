"""From a source to all files that its directives lead to, along one search path. Blocks, and briefly: what a text asks
for and where that lies is remembered until the text or a directory changes.
"""

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Final, TypeVar

from blake3 import blake3

from corral.compile.directives import NOTHING, Directives, definition, definitions, directives
from corral.compile.files import FileEntry, open_unblocked, read_whole
from corral.compile.model import Category
from corral.compile.paths import absolute, relative
from corral.compile.ports import CompileRequest, FileHashes
from corral.compile.remote.listings import Listings
from corral.compile.remote.search_path import SearchPath
from corral.compile.searched import OF_THE_SYSTEM

_REMEMBERED_MAX: Final = 100_000
_FILES_MAX: Final = 10_000

K = TypeVar("K")
V = TypeVar("V")


class Unclear(Exception):
    """Nobody can tell without the preprocessor."""


class Texts:
    """What files ask for and define, by their hashes."""

    def __init__(self) -> None:
        self._asks: dict[str, Directives] = {}
        self._defines: dict[tuple[str, str], Directives] = {}

    def asks(self, entry: FileEntry) -> Directives:
        """Raises Unclear when the file is another one now."""
        known = self._asks.get(entry.hash)
        if known is None:
            known = directives(_content(entry))
            _remember(self._asks, entry.hash, known)
        return known

    def defines(self, entry: FileEntry, macro: str) -> Directives:
        """Raises Unclear when the file is another one now."""
        known = self._defines.get((entry.hash, macro))
        if known is None:
            known = definitions(_content(entry), macro)
            _remember(self._defines, (entry.hash, macro), known)
        return known


@dataclass(slots=True)
class Led:
    """What a file leads to, or a whole walk; names as in an ``IncludeSet``.

    Attributes:
        to: files that are there.
        absent: places where nothing is, and a file would be taken.
        asked: files among ``to`` that ``__has_include`` asks for.
    """

    to: dict[str, None] = field(default_factory=dict)
    absent: dict[str, None] = field(default_factory=dict)
    asked: dict[str, None] = field(default_factory=dict)

    def join(self, other: "Led") -> list[str]:
        """Add all but ``to``, which is what is to be walked next."""
        self.absent.update(other.absent)
        self.asked.update(other.asked)
        return [*other.to]


class Scope:
    """All compiles with one search path."""

    def __init__(self, path: SearchPath, root: str, texts: Texts) -> None:
        self._path = path
        self._root = root
        self._ignored = [each for each in path.ignored if not each.startswith(OF_THE_SYSTEM)]
        self._listings = Listings()
        self._led: dict[tuple[str, str], Led] = {}
        self.texts = texts

    def holds(self) -> bool:
        """Whether the compiler would still name the same directories."""
        return not any(os.path.lexists(absolute(each, root=self._root)) for each in self._path.ignored)

    def walk(self, request: CompileRequest, hashes: FileHashes, now_ns: int) -> tuple[Led, Mapping[str, FileEntry]]:
        """All that the source leads to, and the files by their absolute paths, the source first. Raises Unclear."""
        if not self._listings.refresh(now_ns):
            self._led.clear()
        walk = _Walk(self, request, hashes)
        walk.follow(self._first(request))
        while more := [path for path in walk.named_by_macros() if path not in walk.entries]:
            walk.follow(more)
        for path in islice(walk.entries, 1, None):
            if not path.startswith(OF_THE_SYSTEM):
                walk.led.absent.update({f"{path}.gch": None, f"{path}.pch": None})  # would be taken instead
        return walk.led, {entry.path: entry for entry in walk.entries.values()}

    def _first(self, request: CompileRequest) -> list[str]:
        home = relative(".", cwd=request.cwd, root=self._root)
        first = Led({relative(request.cacheable.source, cwd=request.cwd, root=self._root): None})
        for each in request.invocation.arguments:
            if each.category is Category.FORCED_INCLUDE and each.value:
                self.search(first, each.value, home, quoted=True)
        self.search(first, "stdc-predef.h", home, quoted=False)  # every source begins with it, where there is one
        return [*first.to]

    def led_by(self, path: str, entry: FileEntry) -> Led:
        """Where a file leads to by itself, macros aside."""
        led = self._led.get((path, entry.hash))
        if led is None:
            led, asks = Led(), self.texts.asks(entry)
            if not asks.clear:
                raise Unclear
            for name, quoted in asks.names:
                self.search(led, name, home_of(path), quoted=quoted)
            for name in asks.every:
                self.search(led, name, home_of(path), quoted=True, every=True)
            for name in filter(None, entry.traits.asks_for):
                led.asked.update(dict.fromkeys(self.search(led, name, home_of(path), quoted=True, every=True)))
            _remember(self._led, (path, entry.hash), led)
        return led

    def search(self, led: Led, name: str, home: str, *, quoted: bool, every: bool = False) -> list[str]:
        """Note where ``name`` is, and where it is not and would be taken from; the places where it is."""
        places: Sequence[str] = (home, *self._path.quotes) if quoted else ()
        there: list[str] = []
        for place in ("",) if name.startswith("/") else (*places, *self._path.brackets):
            path = name if place in ("", ".") else f"{place}/{name}"
            if self._listings.holds(absolute(path, root=self._root)):
                there.append(path)
                if not every:
                    break
            elif not path.startswith(OF_THE_SYSTEM):
                led.absent[path] = None
        led.absent.update((f"{place}/{name}", None) for place in self._ignored)
        led.to.update(dict.fromkeys(there))
        return there


class _Walk:
    """One walk. ``entries``: the files so far, the source first."""

    def __init__(self, scope: Scope, request: CompileRequest, hashes: FileHashes) -> None:
        self._scope = scope
        self._request = request
        self._hashes = hashes
        self._asking: defaultdict[str, set[str]] = defaultdict(set)
        self._opaque: set[str] = set()
        self.entries: dict[str, FileEntry] = {}
        self.led = Led()

    def follow(self, paths: Sequence[str]) -> None:
        """Go on until nothing new is found."""
        scope, root = self._scope, self._request.root
        waiting = [*reversed(paths)]
        while waiting:
            path = waiting.pop()
            if path in self.entries:
                continue
            entry = self._hashes.entry(absolute(path, root=root))
            if entry is None or len(self.entries) >= _FILES_MAX:
                raise Unclear
            self.entries[path] = entry
            waiting += self.led.join(scope.led_by(path, entry))
            asks = scope.texts.asks(entry)
            for macro in asks.macros:
                self._asking[macro].add(home_of(path))
            self._opaque.update(asks.opaque)

    def named_by_macros(self) -> list[str]:
        """What is named by macros, whoever defines them. One that nobody defines names nothing."""
        if any(self._meant(macro) for macro in self._opaque):
            raise Unclear
        named = Led()
        waiting = [(macro, frozenset(homes)) for macro, homes in self._asking.items()]
        seen = set(waiting)
        while waiting:
            macro, homes = waiting.pop()
            for meant in self._meant(macro):
                if not meant.clear or meant.opaque:
                    raise Unclear
                for (name, quoted), home in product(meant.names, homes):
                    self._scope.search(named, name, home, quoted=quoted)
                more = [pair for other in meant.macros if (pair := (other, homes)) not in seen]
                seen.update(more)
                waiting += more
        return self.led.join(named)

    def _meant(self, macro: str) -> Collection[Directives]:
        """Every definition of ``macro``."""
        defines = self._scope.texts.defines
        found = [meant for each in self.entries.values() if (meant := defines(each, macro)) is not NOTHING]
        for each in self._request.invocation.arguments:
            name, _, body = (each.value or "").partition("=")
            if each.category is Category.DEFINE and each.flag == "-D" and name == macro:
                found.append(definition(body))
        return found


def home_of(path: str) -> str:
    """The directory of a file."""
    return path.rpartition("/")[0] or "."


def _content(entry: FileEntry) -> bytes:
    """What the file was when it was hashed."""
    try:
        descriptor = open_unblocked(entry.path)
        try:
            content = read_whole(descriptor, entry.size_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unclear from error
    if blake3(content).hexdigest() != entry.hash:
        raise Unclear
    return content


def _remember(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= _REMEMBERED_MAX:
        known.clear()
    known[key] = value
