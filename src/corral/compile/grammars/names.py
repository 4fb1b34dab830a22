"""Which grammar a program speaks, as its name tells: ``aarch64-linux-gnu-gcc-12``, ``clang++-14``, ``cl.exe``."""

import re
from typing import Final

from corral.compile.model import Family, Language

_GNU: Final = re.compile(
    r"(?:[a-z0-9_.]+-)*(gcc|g\+\+|cc|c\+\+|clang|clang\+\+)(?:-[0-9][0-9.]*)?(?:-(?:posix|win32))?"
)
_MSVC: Final = re.compile(r"(?:[a-z0-9_.]+-)*(?:cl|clang-cl)(?:-[0-9][0-9.]*)?")
_BSD: Final = re.compile(r"(?:[a-z0-9_.]+-)*(gcc|g\+\+|clang|clang\+\+)[0-9][0-9.]*")


def _plain(program: str) -> str:
    return program.replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe")


def family_of(program: str) -> Family | None:
    """The grammar of a compiler's name, which may be a path; None when it is no name of a compiler."""
    name = _plain(program)
    if _MSVC.fullmatch(name):
        return Family.MSVC
    return Family.GNU if _GNU.fullmatch(name) or _BSD.fullmatch(name) else None


def default_language(program: str, language: Language) -> Language:
    """What a driver makes of a source whose name says ``language``: g++ takes C for C++."""
    name = _plain(program)
    found = _GNU.fullmatch(name) or _BSD.fullmatch(name)
    if found is not None and found[1].endswith("++"):
        return _AS_CXX.get(language, language)
    return language


_AS_CXX: Final = {
    Language.C: Language.CXX,
    Language.C_PREPROCESSED: Language.CXX_PREPROCESSED,
    Language.HEADER_C: Language.HEADER_CXX,
}
