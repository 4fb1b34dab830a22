"""What a compile may read, found without running the preprocessor: all directives of all files, whatever their
conditions say, along the compiler's own search path.

The preprocessor evaluates tens of thousands of lines for every source; here each text is read once, and a compile only
walks from file to file. What is found holds more files than the compile reads, or the scanner says that it cannot tell:
a name made by a function-like macro, a macro without a plain definition, a language of its own. Every worker tells
what its compiler has read, and :meth:`Reachable.confirmed` compares.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from corral.compile import closure
from corral.compile.files import FileEntry
from corral.compile.model import IncludeSet, Language
from corral.compile.ports import CompileRequest, FileHashes
from corral.compile.remote.asking import gathered
from corral.compile.remote.layout import CannotShip
from corral.compile.remote.search_path import ask_search_path, flags_that_matter
from corral.compile.remote.walking import Scope, Texts, Unclear

_LANGUAGES: Final = frozenset({Language.C, Language.CXX})
_SCOPES_MAX: Final = 256

_Key = tuple[str, str, str, str, tuple[str, ...], tuple[tuple[str, str], ...], str]


class Reachable(msgspec.Struct, frozen=True, kw_only=True):
    """What a compile may read. ``asked``: files that count as read because of ``__has_include``."""

    include_set: IncludeSet
    asked: frozenset[str]

    def confirmed(self, request: CompileRequest, rules: bytes, *, project_only: bool) -> IncludeSet | None:
        """The include set of the compile that wrote ``rules``; None when it has read what was not reachable.

        ``project_only``: its system is another one, so only names of the project say something.
        """
        listed = closure.parse_dependencies(rules.decode("utf-8", "surrogateescape"))
        if not listed:
            return None
        reachable = {_plain(path): (path, content_hash) for path, content_hash in self.include_set.files}
        names = closure.include_files(
            request.cacheable.source, listed, request.cacheable.reads, cwd=request.cwd, root=request.root
        )
        read = [_plain(name) for name in names if not (project_only and name.startswith("/"))]
        if not all(name in reachable for name in read):
            return None
        user = request.invocation.dependency_file
        if project_only or (user is not None and not user.system_headers):
            return self.include_set  # they do not tell of the system's
        kept = dict.fromkeys((*read, *(_plain(name) for name in self.asked)))
        return msgspec.structs.replace(self.include_set, files=tuple(reachable[name] for name in kept))


class IncludeScanner:
    """See the module. For the event loop alone."""

    def __init__(self) -> None:
        self._scopes: OrderedDict[_Key, Scope | None] = OrderedDict()
        self._texts = Texts()

    async def reach(self, request: CompileRequest, hashes: FileHashes, *, now_s: float) -> Reachable | None:
        """What ``request`` may read; None when nobody can tell. Cancellation: safe."""
        if request.cacheable.language not in _LANGUAGES or not request.root:
            return None
        scope = await self._scope(request)
        if scope is None:
            return None
        try:
            found, entries = scope.walk(request, hashes, int(now_s * 1e9))

            def look(path: str) -> FileEntry | None:
                return entries.get(path) or hashes.entry(path)

            include_set = gathered(request, tuple(entries), look, now_s, absent=tuple(found.absent))
        except (Unclear, CannotShip):
            return None  # it may be for what the compile does not read
        if include_set.moment:
            return None
        return Reachable(include_set=include_set, asked=frozenset(found.asked))

    async def _scope(self, request: CompileRequest) -> Scope | None:
        flags = flags_that_matter(request.invocation)
        key = (
            request.identity.digest,
            request.argv[0],
            request.cacheable.language.value,
            request.cwd,
            flags,
            tuple(sorted(request.environment.items())),
            request.root,
        )
        known = key in self._scopes
        scope = self._scopes.get(key)
        if not known or (scope is not None and not scope.holds()):
            scope = self._scopes[key] = await self._ask(request, flags)
            if len(self._scopes) > _SCOPES_MAX:
                self._scopes.popitem(last=False)
        self._scopes.move_to_end(key)
        return scope

    async def _ask(self, request: CompileRequest, flags: Sequence[str]) -> Scope | None:
        try:
            path = await asyncio.to_thread(ask_search_path, request, flags)
        except CannotShip:
            return None
        return None if path is None else Scope(path, request.root, self._texts)


def _plain(path: str) -> str:
    """One spelling for what compilers write in two ways."""
    return path.replace("/./", "/")
