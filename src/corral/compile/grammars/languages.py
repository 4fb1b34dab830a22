"""The language of an input: what the command line says, else what the ending of its name says."""

from typing import Final

from corral.compile.model import Language

_ENDINGS: Final = {
    ".c": Language.C,
    ".i": Language.C_PREPROCESSED,
    **dict.fromkeys((".cc", ".cp", ".cxx", ".cpp", ".CPP", ".c++", ".C"), Language.CXX),
    ".ii": Language.CXX_PREPROCESSED,
    ".m": Language.OBJC,
    ".mi": Language.OBJC_PREPROCESSED,
    **dict.fromkeys((".mm", ".M"), Language.OBJCXX),
    ".mii": Language.OBJCXX_PREPROCESSED,
    ".s": Language.ASSEMBLER,
    **dict.fromkeys((".S", ".sx"), Language.ASSEMBLER_CPP),
    ".h": Language.HEADER_C,
    **dict.fromkeys((".hh", ".H", ".hp", ".hxx", ".hpp", ".HPP", ".h++", ".tcc"), Language.HEADER_CXX),
}
_NAMED: Final = {each.value: each for each in Language}


def named_language(name: str) -> Language:
    """What ``-x NAME`` says; OTHER for a language that is not ours."""
    return _NAMED.get(name, Language.OTHER)


def language_of(path: str) -> Language:
    """What the ending of a name says; OTHER when it is none of ours."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return _ENDINGS.get(name[dot:], Language.OTHER) if dot >= 0 else Language.OTHER
