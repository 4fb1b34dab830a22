"""Where a compiler looks for headers: it tells itself (``-v``), and is asked once for each set of flags."""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from corral.compile.model import Category, Invocation
from corral.compile.paths import relative
from corral.compile.ports import CompileRequest
from corral.compile.remote.asking import run_here

_LEFT_OUT: Final = frozenset(
    {
        Category.MODE,
        Category.OUTPUT,
        Category.INPUT,
        Category.LANGUAGE,
        Category.DEFINE,
        Category.FORCED_INCLUDE,
        Category.DEPENDENCIES,
        Category.WARNING,
        Category.OPTIMIZE,
        Category.DEBUG,
        Category.PATH_MAP,
        Category.LINKER,
    }
)
"""What no search path depends on, and may be another one for each source."""
_QUOTES: Final = '#include "..." search starts here:'
_BRACKETS: Final = "#include <...> search starts here:"
_END: Final = "End of search list."
_IGNORED: Final = re.compile(r'^ignoring nonexistent directory "(.*)"$', re.MULTILINE)


class SearchPath(msgspec.Struct, frozen=True, kw_only=True):
    """Directories in the order in which they are searched, project-relative where they are of the project.

    Attributes:
        quotes: for names in quotes, after the directory of the file that asks; ``brackets`` follow.
        brackets: for all names.
        ignored: directories that would be searched if they were there.
    """

    quotes: tuple[str, ...]
    brackets: tuple[str, ...]
    ignored: tuple[str, ...]


def flags_that_matter(invocation: Invocation) -> tuple[str, ...]:
    """The words of a command line that the search path may depend on."""
    return tuple(word for each in invocation.arguments if each.category not in _LEFT_OUT for word in each.words)


def ask_search_path(request: CompileRequest, flags: Sequence[str]) -> SearchPath | None:
    """Run the compiler on nothing; None when it does not say. Blocking. Raises CannotShip."""
    language = request.cacheable.language.value
    argv = [request.argv[0], *flags, "-E", "-v", "-x", language, "-o", "/dev/null", "/dev/null"]
    told = run_here(request, argv, {"LC_ALL": "C"}).stderr.decode("utf-8", "surrogateescape")
    return read_search_path(told, cwd=request.cwd, root=request.root)


def read_search_path(told: str, *, cwd: str, root: str) -> SearchPath | None:
    """What ``-v`` of gcc and clang tells; None when it is not understood."""
    _, quotes, behind = told.partition(f"{_QUOTES}\n")
    first, brackets, behind = behind.partition(f"{_BRACKETS}\n")
    second, end, _ = behind.partition(_END)
    if not (quotes and brackets and end) or "(framework directory)" in second:
        return None

    def places(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(relative(name.removeprefix(" "), cwd=cwd, root=root) for name in names)

    return SearchPath(
        quotes=places(first.splitlines()),
        brackets=places(second.splitlines()),
        ignored=places(_IGNORED.findall(told)),
    )
