"""Command lines of compilers, understood: one flag table and one reader for each family."""

from collections.abc import Callable, Sequence

from corral.compile.grammars.gnu import read_gnu
from corral.compile.grammars.msvc import read_msvc
from corral.compile.grammars.names import family_of
from corral.compile.grammars.response import TooDeep, expand
from corral.compile.model import Bypass, BypassReason, Family, Invocation


def parse(argv: Sequence[str], *, read_file: Callable[[str], bytes | None] = lambda path: None) -> Invocation | Bypass:
    """Understand ``argv``, the compiler first. Pure but for ``read_file``.

    ``read_file`` gives the content of a response file as it is named on the command line (relative to the directory
    of the compile), None when it cannot be read: then the argument stays as it is, as the compilers do it.
    """
    family = family_of(argv[0]) if argv else None
    if family is None:
        return Bypass(BypassReason.UNKNOWN_COMPILER, argv[0] if argv else "")
    response_files: list[str] = []
    arguments: Sequence[str] = argv[1:]
    if any(word[:1] == "@" for word in arguments):
        try:
            arguments = expand(arguments, family, read_file, response_files)
        except TooDeep as error:
            return Bypass(BypassReason.RESPONSE_FILE, str(error))
    if "--driver-mode=cl" in arguments:
        family = Family.MSVC
    read = read_gnu if family is Family.GNU else read_msvc
    return read(argv[0], arguments, tuple(response_files))
