"""What a compile looked for: files that were there although no compiler says so, and places where nothing was.

Pure, but for ``exists``.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from corral.compile.model import Category, FileTraits, Invocation, Language
from corral.compile.paths import absolute, relative

NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})
ASSEMBLY: Final = frozenset({Language.ASSEMBLER, Language.ASSEMBLER_CPP})
"""Languages whose sources may read files that no preprocessor sees."""

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
_PLACES_MAX: Final = 65_536
"""Names that are watched for one compile; there are projects with a hundred directories and as many first words."""


def absent(
    invocation: Invocation,
    *,
    files: Sequence[str],
    cwd: str,
    root: str,
    exists: Callable[[str], bool],
    found: Iterable[FileTraits] = (),
    environment: Mapping[str, str] = NO_VARIABLES,
) -> tuple[str, ...] | None:
    """Paths where a file, had it been there, could have been read instead of one of ``files``; None for too many.

    A header is looked for under a name such as ``sys/types.h`` in one directory after the other, and the name begins
    with some part of the path where it was found. So nothing can come in between unless one of these parts appears
    in a directory that is searched and did not have it. The list may name more than is needed, never less; a part
    that is there already is followed inside. ``exists`` is asked with absolute paths.
    """
    traits_of_all = tuple(found)
    parts = {name.split("/", 1)[0] for each in traits_of_all for name in (*each.asks_for, *each.embedded) if name}
    for path in files:
        parts.update(_parts(path))
    directories = dict.fromkeys(_directories(invocation, files, cwd, root, environment))
    if any(each.embedded for each in traits_of_all):
        directories[relative(".", cwd=cwd, root=root)] = None
    names: dict[str, None] = {}
    for path in files[1:]:
        if not path.startswith(OF_THE_SYSTEM):
            names[f"{path}.gch"] = None  # a precompiled one would be taken instead
            names[f"{path}.pch"] = None
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
            elif name not in directories and exists(place + "/."):
                directories[name] = None
                queue.append(name)
        if len(names) + len(queue) > _PLACES_MAX:
            return None
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
    """Files that count as read although no compiler says so, and are not among ``files``: asked for by
    ``__has_include`` and there; embedded by the assembler. What is found may embed more: look at it and ask again.
    """
    traits_of_all = tuple(found)
    embedded = _found_by_assembler(invocation, traits_of_all, files, cwd, root, exists)
    asked = {name for each in traits_of_all for name in each.asks_for if name}
    if not asked:
        return embedded
    directories = dict.fromkeys(_directories(invocation, files, cwd, root, environment))
    names = (name if name.startswith("/") else f"{directory}/{name}" for directory in directories for name in asked)
    return embedded + tuple(
        path for name in names if (path := name.removeprefix("./")) not in files and exists(absolute(path, root=root))
    )


def _found_by_assembler(
    invocation: Invocation,
    found: Iterable[FileTraits],
    files: Sequence[str],
    cwd: str,
    root: str,
    exists: Callable[[str], bool],
) -> tuple[str, ...]:
    """Where the assembler finds what sources embed: in the directory of the compile, then in those of -I."""
    if not invocation.inputs or invocation.inputs[0][1] not in ASSEMBLY:
        return ()
    places = [relative(".", cwd=cwd, root=root), *_searched(invocation, cwd, root, NO_VARIABLES)]
    names: dict[str, None] = {}
    for name in sorted({name for each in found for name in each.embedded if name}):
        candidates = [name] if name.startswith("/") else [_joined(place, name) for place in places]
        for path in candidates:
            if exists(absolute(path, root=root)):
                names[path] = None
                break
    return tuple(path for path in names if path not in files)


def _joined(directory: str, name: str) -> str:
    return name if directory == "." else f"{directory}/{name}"


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


OF_THE_SYSTEM: Final = ("/usr/", "/lib/", "/opt/")
"""Where nobody puts a header during a build."""


def _home(path: str) -> str:
    return path.rpartition("/")[0] or "."


def _directories(
    invocation: Invocation, files: Sequence[str], cwd: str, root: str, environment: Mapping[str, str]
) -> Iterable[str]:
    """Where the project's own headers may come from; those of the system itself are not looked at."""
    yield from _searched(invocation, cwd, root, environment)
    yield from (_home(path) for path in files if not path.startswith(OF_THE_SYSTEM))


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
