"""A request that was understood once: what it asks for, its key, and the include sets it may match.

Wrappers of one build send the same words again and again, so plans are kept by them; everything that can change
meanwhile (compiler, response files, headers) is checked at every use.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from stat import S_ISREG
from typing import Final

from corral.compile import cacheability, closure, grammars, key
from corral.compile.files import FileTable, Signature, open_unblocked, read_whole, signature_of
from corral.compile.frames import Ask, words
from corral.compile.host import local_date
from corral.compile.identity import Question, question
from corral.compile.model import (
    Bypass,
    BypassReason,
    Cacheable,
    CompilerIdentity,
    FileTraits,
    IncludeSet,
    Invocation,
    KeyInputs,
)
from corral.compile.paths import absolute, find_root

RESPONSE_BYTES_MAX: Final = 1024**2
_SEARCH: Final = ("PATH", "TMPDIR", "HOME")
_ROOT_S: Final = 1.0
_ROOTS_MAX: Final = 10_000
_TRUSTED_AFTER_NS: Final = 100_000_000
"""A directory that changed later than so long ago may change again within one tick of its clock."""


_NOT_ASKED: Final = CompilerIdentity(digest="", path="", vendor=None)


class Roots:
    """Project roots by directory, looked up again after a second: a marker may come or go at any time."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._known: dict[str, tuple[str, float]] = {}

    def of(self, directory: str) -> str:
        """The root around an absolute directory, "" when nothing marks one."""
        now_s = self._now_s()
        known = self._known.get(directory)
        if known is not None and now_s - known[1] < _ROOT_S:
            return known[0]
        if len(self._known) >= _ROOTS_MAX:
            self._known.clear()
        root = find_root(directory, os.path.exists)
        self._known[directory] = (root, now_s)
        return root


class LiveSet:
    """An include set with absolute names, ready to be compared with the disk."""

    __slots__ = ("absent", "include_set", "pairs", "result_key", "traits")

    def __init__(self, include_set: IncludeSet, result_key: str, root: str) -> None:
        self.include_set = include_set
        self.result_key = result_key
        self.pairs = [(absolute(path, root=root), content_hash) for path, content_hash in include_set.files]
        self.absent = [*_by_directory(include_set.absent, root)]

    def holds(self, table: FileTable, root: str, *, moment: "Callable[[LiveSet], str | None]", now_ns: int) -> bool:
        """Tell whether a compile now would read the same."""
        included = self.include_set
        if included.bound_to and included.bound_to != root:
            return False
        if not table.all_match(self.pairs):
            return False
        if not all(group.is_absent(now_ns) for group in self.absent):
            return False
        return not included.moment or moment(self) == included.moment


class _Absent:
    """Names of one directory that must not exist; not looked at again while the directory is untouched."""

    __slots__ = ("_directory", "_names", "_seen")

    def __init__(self, directory: str, names: list[str]) -> None:
        self._directory = directory
        self._names = names
        self._seen: Signature | None = None

    def is_absent(self, now_ns: int) -> bool:
        try:
            found = os.stat(self._directory)
        except OSError:
            return True  # nothing can be inside
        signature = signature_of(found)
        if signature == self._seen:
            return True
        # By listing: one call for many names; a long listing costs more than a few questions.
        if len(self._names) > 8:
            try:
                there = set(os.listdir(self._directory))
            except OSError:
                return False
            if not there.isdisjoint(self._names):
                return False
        elif any(os.path.lexists(f"{self._directory}/{name}") for name in self._names):
            return False
        trusted = max(found.st_mtime_ns, found.st_ctime_ns) < now_ns - _TRUSTED_AFTER_NS
        self._seen = signature if trusted else None
        return True


def _by_directory(names: tuple[str, ...], root: str) -> Iterator[_Absent]:
    groups: dict[str, list[str]] = {}
    for name in names:
        directory, _, last = absolute(name, root=root).rpartition("/")
        groups.setdefault(directory, []).append(last)
    return (_Absent(directory, each) for directory, each in groups.items())


class Plan:
    """What a request means. ``bypass`` is set when it goes straight to the compiler; then little else is.

    ``met`` is the compiler of this machine; ``identity`` is the one whose object is wanted, which may be an image's.
    """

    __slots__ = (
        "_at_home",
        "argv",
        "bypass",
        "cacheable",
        "cwd",
        "environment",
        "identity",
        "inputs",
        "invocation",
        "met",
        "question",
        "request_key",
        "responses",
        "root",
        "search",
        "sets",
        "source",
        "targets",
        "terminal",
    )

    bypass: Bypass | None
    cacheable: Cacheable
    identity: CompilerIdentity
    inputs: KeyInputs
    invocation: Invocation

    def __init__(self, ask: Ask, root: str) -> None:
        self.cwd = ask.cwd
        self.root = root
        self.argv = (ask.program if ask.program.startswith("/") else f"{ask.cwd}/{ask.program}", *words(ask.arguments))
        variables = dict(word.split("=", 1) for word in words(ask.environment) if "=" in word)
        self.environment = key.relevant_environment(variables)
        self.search: dict[str, str] = {name: variables[name] for name in _SEARCH if name in variables}
        self.terminal = ask.terminal and variables.get("TERM", "dumb") != "dumb" and variables.get("GCC_COLORS") != ""
        self.responses: list[tuple[str, Signature]] = []
        self.source = ""
        self.request_key = ""
        self.targets: dict[str, str] = {}
        self.sets: list[LiveSet] | None = None
        self.met = self.identity = _NOT_ASKED
        self._at_home: Plan | None = None
        self.bypass = self._read()
        prefixes = () if self.bypass is not None else self.invocation.flags("-B")
        self.question: Question = question(self.argv[0], variables, [self.here(each.value or "") for each in prefixes])

    def _read(self) -> Bypass | None:
        parsed = grammars.parse(self.argv, read_file=self._response)
        if isinstance(parsed, Bypass):
            return parsed
        judged = cacheability.judge(parsed, self.environment)
        if isinstance(judged, Bypass):
            if parsed.inputs:
                self.source = self.here(parsed.inputs[0][0])
            return judged
        self.invocation, self.cacheable = parsed, judged
        self.source = self.here(judged.source)
        self.targets = {"object": self.here(judged.output)}
        if parsed.dependency_file is not None:
            self.targets["dependencies"] = self.here(parsed.dependency_file.path)
        for path in judged.side_files:
            self.targets[f"side:{os.path.splitext(path)[1]}"] = self.here(path)
        return None

    @property
    def travels(self) -> bool:
        """True when a worker may compile this."""
        return self.bypass is None and self.cacheable.remote and bool(self.root)

    def identify(self, met: CompilerIdentity, identity: CompilerIdentity) -> None:
        """Complete the plan, once it is known which compiler it is; what was known of another one is forgotten."""
        self.met, self.identity = met, identity
        self.sets = None
        self._at_home = None
        if self.bypass is not None:
            return
        if identity.vendor is None:
            self.bypass = Bypass(BypassReason.UNKNOWN_COMPILER, identity.path)
            return
        self.inputs = key.key_inputs(
            self.invocation,
            self.cacheable,
            identity=identity,
            environment=self.environment,
            cwd=self.cwd,
            root=self.root,
        )
        self.request_key = key.request_key(self.inputs)

    def at_home(self) -> "Plan":
        """The same for the compiler of this machine, which compiles when the other one cannot be had."""
        if self.identity is self.met:
            return self
        if self._at_home is None:
            self._at_home = copy.copy(self)
            self._at_home.identify(self.met, self.met)
        return self._at_home

    def live(self, sets: Iterable[tuple[IncludeSet, str]]) -> list[LiveSet]:
        """Stored include sets, ready to be compared."""
        return [LiveSet(included, result_key, self.root) for included, result_key in sets]

    def remember(self, live: LiveSet, *, at_most: int) -> None:
        """Put a new set in front."""
        others = [each for each in self.sets or () if each.result_key != live.result_key]
        self.sets = [live, *others][:at_most]

    def here(self, path: str) -> str:
        """``path`` as named by this compile, absolute."""
        return path if path.startswith("/") else f"{self.cwd}/{path}"

    def is_current(self, root: str) -> bool:
        """False when a response file has changed, or the project's marker has come or gone."""
        if self.bypass is None and root != self.root:
            return False
        for path, signature in self.responses:
            try:
                if signature_of(os.stat(path)) != signature:
                    return False
            except OSError:
                return False
        return True

    def _response(self, path: str) -> bytes | None:
        place = self.here(path)
        try:
            descriptor = open_unblocked(place)
            try:
                found = os.fstat(descriptor)
                content = read_whole(descriptor, RESPONSE_BYTES_MAX + 1) if S_ISREG(found.st_mode) else None
            finally:
                os.close(descriptor)
        except OSError:
            return None
        self.responses.append((place, signature_of(found)))
        return content if content is not None and len(content) <= RESPONSE_BYTES_MAX else None


def moment_now(plan: Plan, table: FileTable, live: LiveSet, *, now_s: float) -> str | None:
    """What time macros say now of the files of a set."""
    found: list[tuple[str, FileTraits]] = []
    modified: dict[str, int] = {}
    for path, _ in live.include_set.files:
        entry = table.entry(absolute(path, root=plan.root))
        if entry is None:
            return None
        found.append((path, entry.traits))
        modified[path] = entry.modified_ns
    return closure.moment(
        found,
        today=local_date(now_s, plan.environment.get("TZ", "")),
        epoch_set=bool(plan.environment.get("SOURCE_DATE_EPOCH")),
        mtime_ns=modified.__getitem__,
    )
