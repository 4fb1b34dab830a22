"""What a compile read, and what of it decides whether its result may be kept. Pure, but for ``exists`` in ``absent``.

A compiler tells its headers as rules for make (-MD), as lines on stderr (-H) or on stdout (/showIncludes). A name in
such a list is as the compiler opened it: relative to the directory of the compile, or absolute. ``include_files``
makes of it names that hold in every checkout.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from corral.compile.model import (
    PLAIN_FILE,
    Bypass,
    BypassReason,
    Cacheable,
    Category,
    FileTraits,
    Invocation,
    Language,
)
from corral.compile.paths import ROOT_MARK, absolute, relative

NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})

# What the text of a file says.

_ASKS: Final = re.compile(rb"__has_(?:include|include_next|embed)\s*\(\s*([<\"]?)([^>\")\n]*)")
_NAMES_ITSELF: Final = (b"__FILE__", b"__BASE_FILE__", b"__builtin_FILE", b"source_location", b"__FILE_NAME__")
_EMBEDS: Final = re.compile(rb"(?:^|[^#\w.])\s*\.(?:incbin|include)\b|^[ \t]*#[ \t]*embed\b", re.MULTILINE)


def traits(content: bytes) -> FileTraits:
    """What the text of a file says that its hash alone does not."""
    has_include = b"__has_" in content and (b"__has_include" in content or b"__has_embed" in content)
    dotted = b".inc" in content or b"embed" in content
    names_itself = any(name in content for name in _NAMES_ITSELF)
    date, time, timestamp = (name in content for name in (b"__DATE__", b"__TIME__", b"__TIMESTAMP__"))
    if not (has_include or dotted or names_itself or date or time or timestamp):
        return PLAIN_FILE
    return FileTraits(
        date=date,
        time=time,
        timestamp=timestamp,
        embeds=dotted and _EMBEDS.search(content) is not None,
        has_include=has_include,
        asks_for=_asked(content) if has_include else (),
        names_itself=names_itself,
    )


def _asked(content: bytes) -> tuple[str, ...]:
    """The names that a text asks for; "" for a name that is made by a macro."""
    names = set()
    for quote, name in _ASKS.findall(content):
        text = name.decode("utf-8", "surrogateescape").strip()
        names.add(text if quote else "")
    return tuple(sorted(names))


_PRECOMPILED: Final = (".gch", ".pch", ".pcm", ".gcm", ".ifc")
UNPREPROCESSED: Final = frozenset(
    {
        Language.ASSEMBLER,
        Language.C_PREPROCESSED,
        Language.CXX_PREPROCESSED,
        Language.OBJC_PREPROCESSED,
        Language.OBJCXX_PREPROCESSED,
    }
)
"""Of these a compiler lists nothing, and writes no rules for make even if asked to: they read the source alone."""


def refusal(
    cacheable: Cacheable,
    found: Iterable[FileTraits],
    files: Sequence[str] = (),
    *,
    exists: Callable[[str], bool] = lambda path: False,
    root: str = "",
) -> Bypass | None:
    """Whether what was read forbids to keep the result. Time macros: see :func:`moment`.

    ``files`` as :func:`include_files` gives them; ``exists`` tells whether a precompiled header stands beside one of
    them: the compilers take it instead and do not say so.
    """
    for path in files:
        beside = absolute(path, root=root) + ".gch"
        if path.endswith(_PRECOMPILED) or (not path.startswith("/usr/") and exists(beside)):
            return Bypass(BypassReason.PRECOMPILED_HEADER, path)
    for each in found:
        if each.embeds:
            return Bypass(BypassReason.EMBEDDED_FILE, cacheable.source)
        if "" in each.asks_for:
            return Bypass(BypassReason.EMBEDDED_FILE, "__has_include of a macro")
    return None


def moment(
    found: Sequence[tuple[str, FileTraits]],
    *,
    today: str,
    epoch_set: bool,
    mtime_ns: Callable[[str], int],
) -> str | None:
    """When the result holds, because of time macros: "" always, None never, else a text that must be the same again.

    ``__TIME__`` never holds, ``__DATE__`` for the day ``today`` (local, ISO), ``__TIMESTAMP__`` while no file is
    touched. SOURCE_DATE_EPOCH (``epoch_set``) fixes the first two, and stands in the key.
    """
    conditions: list[str] = []
    if not epoch_set and any(each.time for _, each in found):
        return None
    if not epoch_set and any(each.date for _, each in found):
        conditions.append(f"date={today}")
    if any(each.timestamp for _, each in found):
        conditions.extend(f"touched={path}@{mtime_ns(path)}" for path, _ in found if not path.startswith("/usr/"))
    return ";".join(conditions)


def written_since(modified_ns: int, changed_ns: int, started_ns: int) -> bool:
    """True when a file may have been written while the compile read it; such a result is not kept.

    Instants are of the wall clock; file systems take theirs from a clock that ticks every few milliseconds.
    """
    return max(modified_ns, changed_ns) >= started_ns - _TICK_NS


_TICK_NS: Final = 10_000_000


# Lists of what was read.


def parse_dependencies(text: str) -> tuple[str, ...]:
    """The prerequisites of the first rule for make, each once, in order; quoting is undone.

    ``\\ `` and ``\\#`` are the characters, ``$$`` a dollar; a backslash at the end of a line continues it.
    """
    rule = _first_rule(text.replace("\r\n", "\n").replace("\\\n", " "))
    names: dict[str, None] = {}
    for word in _WORD.findall(rule):
        name = _QUOTED.sub(_unquoted, word).replace("$$", "$")
        names[name] = None
    return tuple(names)


_WORD: Final = re.compile(r"(?:\\.|[^\s\\])+")
_QUOTED: Final = re.compile(r"(\\*)\\([ \t#:])")


def _unquoted(found: re.Match[str]) -> str:
    """``\\ `` → a space; backslashes in front of it were doubled."""
    return found[1][: len(found[1]) // 2] + found[2]


def _first_rule(text: str) -> str:
    """What stands right of the colon in the first line that has one."""
    for line in text.split("\n"):
        at = 0
        while (at := line.find(":", at)) >= 0:
            behind = line[at + 1 : at + 2]
            quoted = at > 0 and line[at - 1] == "\\"
            if not quoted and (behind == "" or behind.isspace()):
                return line[at + 1 :]
            at += 1
    return ""


_TREE_LINE: Final = re.compile(rb"\.+ (.+)")
_GUARDS: Final = b"Multiple include guards may be useful for:"


def take_tree(stderr: bytes) -> tuple[tuple[str, ...], bytes]:
    """The headers that -H lists on stderr, and stderr without that list."""
    names: dict[str, None] = {}
    kept: list[bytes] = []
    guards = False
    for line in stderr.split(b"\n"):
        found = _TREE_LINE.fullmatch(line)
        if found is not None:
            names[found[1].decode("utf-8", "surrogateescape")] = None
        elif line == _GUARDS:
            guards = True
        elif guards and line and b": " not in line and line[:1] not in (b" ", b"\t"):
            names.setdefault(line.decode("utf-8", "surrogateescape"), None)  # -include, -imacros: not in the tree
        else:
            guards = guards and not line
            kept.append(line)
    return tuple(names), b"\n".join(kept)


_NOTE: Final = re.compile(rb"Note: including file: *(.+?)\r?")


def take_notes(stdout: bytes, *, keep: bool) -> tuple[tuple[str, ...], bytes]:
    """The headers that /showIncludes lists on stdout, and stdout without them unless the user asked (``keep``)."""
    names: dict[str, None] = {}
    kept: list[bytes] = []
    for line in stdout.split(b"\n"):
        found = _NOTE.fullmatch(line)
        if found is not None:
            names[found[1].decode("utf-8", "surrogateescape")] = None
        if found is None or keep:
            kept.append(line)
    return tuple(names), b"\n".join(kept)


def include_files(source: str, listed: Sequence[str], reads: Sequence[str], *, cwd: str, root: str) -> tuple[str, ...]:
    """All files that a compile read, the source first, each once, project-relative where they are of the project."""
    names = dict.fromkeys(relative(each, cwd=cwd, root=root) for each in (source, *listed, *reads))
    return tuple(names)


# What was not there.

_SEARCHED: Final = frozenset(
    {"-I", "-isystem", "-iquote", "-idirafter", "-cxx-isystem", "-F", "/I", "/external:I", "/imsvc"}
)
_SEARCHED_BY_NAME: Final = (
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
    "OBJC_INCLUDE_PATH",
    "OBJCPLUS_INCLUDE_PATH",
)
_ABSENT_MAX: Final = 4096


def absent(
    invocation: Invocation,
    *,
    files: Sequence[str],
    cwd: str,
    root: str,
    exists: Callable[[str], bool],
    found: Iterable[FileTraits] = (),
    environment: Mapping[str, str] = NO_VARIABLES,
) -> tuple[str, ...]:
    """Paths where a file, had it been there, could have been read instead of one of ``files``.

    A header is looked for under a name such as ``sys/types.h`` in one directory after the other, and the name begins
    with some part of the path where it was found. So nothing can come in between unless one of these parts appears
    in a directory that is searched and did not have it. The list may name more than is needed, never less; a part
    that is there already is followed inside. ``exists`` is asked with absolute paths.
    """
    parts = {name.split("/", 1)[0] for each in found for name in each.asks_for if name}
    for path in files:
        parts.update(_parts(path))
    directories = dict.fromkeys(_directories(invocation, files, cwd, root, environment))
    names: dict[str, None] = {}
    for path in files[1:]:
        if not path.startswith("/"):
            names[f"{path}.gch"] = None  # a precompiled one would be taken instead
    at = 0
    queue = list(directories)
    while at < len(queue):
        directory = queue[at]
        at += 1
        for part in sorted(parts):
            name = f"{directory}/{part}" if directory != "." else part
            place = name if name.startswith("/") else f"{root}/{name}"
            if not exists(place):
                names[name] = None
            elif name not in directories and exists(place + "/.") and len(queue) < _ABSENT_MAX:
                directories[name] = None
                queue.append(name)
        if len(names) > _ABSENT_MAX:
            break
    return tuple(names)


def present(
    invocation: Invocation,
    *,
    files: Sequence[str],
    cwd: str,
    root: str,
    exists: Callable[[str], bool],
    found: Iterable[FileTraits],
    environment: Mapping[str, str] = NO_VARIABLES,
) -> tuple[str, ...]:
    """Files that were asked for (``__has_include``) and are there; they count as read, although no compiler says so."""
    asked = {name for each in found for name in each.asks_for if name}
    if not asked:
        return ()
    directories = dict.fromkeys(_directories(invocation, files, cwd, root, environment))
    names = (name if name.startswith("/") else f"{directory}/{name}" for directory in directories for name in asked)
    return tuple(
        path for name in names if (path := name.removeprefix("./")) not in files and exists(absolute(path, root=root))
    )


def _parts(path: str) -> Collection[str]:
    """With which words the name of a header can begin that was found at ``path``."""
    system = _SYSTEM.match(path)
    if system is not None:
        return (path[system.end() :].split("/", 1)[0],)
    return [part for part in path.split("/") if part not in ("", ".", "..")]


_SYSTEM: Final = re.compile(
    r"/usr/(?:local/)?include/(?:[^/]+-linux-[^/]+/)?(?:c\+\+/[^/]+/)?"
    r"|/usr/lib/(?:[^/]+/)?(?:gcc/[^/]+/[^/]+|(?:lib/)?clang/[^/]+)/include(?:-fixed)?/"
)
"""Where the compilers of a Linux system look by themselves; elsewhere any part of a path could begin the name."""


def _home(path: str) -> str:
    return path.rpartition("/")[0] or "."


def _directories(
    invocation: Invocation, files: Sequence[str], cwd: str, root: str, environment: Mapping[str, str]
) -> Iterable[str]:
    """Where the project's own headers may come from; those of the system itself are not looked at."""
    yield from _searched(invocation, cwd, root, environment)
    yield from (_home(path) for path in files if not path.startswith("/"))


def _searched(invocation: Invocation, cwd: str, root: str, environment: Mapping[str, str]) -> Iterable[str]:
    for argument in invocation.arguments:
        if argument.category is Category.INCLUDE and argument.flag in _SEARCHED and argument.value:
            yield relative(argument.value, cwd=cwd, root=root)
        elif argument.category is Category.FORCED_INCLUDE:
            yield relative(".", cwd=cwd, root=root)
    for name in _SEARCHED_BY_NAME:
        for directory in environment.get(name, "").split(":"):
            if directory:
                yield relative(directory, cwd=cwd, root=root)


# Whether a result holds in another checkout.


def bound_to(
    root: str, *, contents: Iterable[bytes], found: Sequence[tuple[str, FileTraits]], invocation: Invocation
) -> str:
    """``root`` when its name got into an object, or may have; "" when the object is the same in every checkout.

    ``contents``: the objects as they were written. Compressed ones hide names, and a name may count without standing
    in the object (``sizeof __FILE__``): then the root is bound as soon as the command line names it.
    """
    if not root:
        return ""
    name = root.encode("utf-8", "surrogateescape")
    if any(name in content for content in contents):
        return root
    if not any(root in word for argument in invocation.arguments for word in argument.words):
        return ""
    hidden = any(argument.flag in ("-g", "-f") and _hides(argument.value or "") for argument in invocation.arguments)
    spoken = any(each.names_itself and not path.startswith("/") for path, each in found)
    return root if hidden or spoken else ""


def _hides(value: str) -> bool:
    return value.startswith(("z", "lto", "embed-bitcode"))


# Texts that name the checkout: rules for make, messages.


def store_dependencies(content: bytes, *, root: str) -> bytes:
    """A text of the compiler with the root replaced by a mark. Raises nothing; a text with the mark stays wrong."""
    if not root:
        return content
    name, mark = _quoted_for_make(root), ROOT_MARK.encode()
    return _boundary(name).sub(lambda found: mark, content)


def replay_dependencies(content: bytes, *, root: str) -> bytes:
    """... and back, for another checkout."""
    return content.replace(ROOT_MARK.encode(), _quoted_for_make(root)) if root else content


def _quoted_for_make(path: str) -> bytes:
    text = path.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")
    return text.encode("utf-8", "surrogateescape")


def _boundary(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?<![\w./-])" + re.escape(name) + rb"(?=/|[\s:]|$)")
