"""Reading a command line of cl or clang-cl. Pure.

Flags begin with ``/`` or ``-``. clang-cl takes flags of clang too, which stand in the table with their ``-``; an
argument that begins with ``/`` and is no flag that we know may be the absolute name of a source on Unix, which counts
as an input when its ending says so.
"""

from collections.abc import Sequence
from typing import Final

from corral.compile.grammars.languages import language_of
from corral.compile.grammars.msvc_table import MSVC_FLAGS
from corral.compile.grammars.table import Role, Shape, Spec
from corral.compile.model import Argument, Category, Family, Invocation, Language, Mode

_MODES: Final = {
    "/c": Mode.COMPILE,
    "/E": Mode.PREPROCESS,
    "/EP": Mode.PREPROCESS,
    "/P": Mode.PREPROCESS,
    "/Zs": Mode.SYNTAX,
    "/?": Mode.QUERY,
}
_BY_WEIGHT: Final = (Mode.QUERY, Mode.PREPROCESS, Mode.SYNTAX, Mode.COMPILE)
_WITH_COLON: Final = frozenset({"/Fo", "/Fe"})


class _Reader:
    """What is known after the arguments so far."""

    def __init__(self, compiler: str) -> None:
        self.compiler = compiler
        self.arguments: list[Argument] = []
        self.modes: set[Mode] = set()
        self.inputs: list[tuple[str, Language | None]] = []
        self.language: Language | None = None
        self.output: str | None = None

    def take(self, spec: Spec, value: str | None) -> None:
        """What a flag with a role of its own changes."""
        name = spec.canonical or spec.name
        if spec.role is Role.MODE:
            self.modes.add(_MODES[name])
        elif spec.role is Role.OUTPUT:
            self.output = value
        elif spec.role is Role.LANGUAGE_OF_ALL:
            self.language = Language.C if name == "/TC" else Language.CXX
        elif spec.role is Role.INPUT and value:
            self.inputs.append((value, Language.C if name == "/Tc" else Language.CXX))


def read_msvc(compiler: str, arguments: Sequence[str], response_files: tuple[str, ...]) -> Invocation:
    """Understand the arguments behind ``compiler``; response files are expanded already."""
    reader = _Reader(compiler)
    at = 0
    while at < len(arguments):
        word = arguments[at]
        spec, joined = _find(word)
        if word == "--":
            reader.arguments.append(Argument((word,), word, None, Category.OTHER))
            for path in arguments[at + 1 :]:
                _input(reader, path)
            break
        if spec is None and (word[:1] not in ("/", "-") or _is_source(word)):
            _input(reader, word)
            at += 1
        elif spec is None:
            reader.arguments.append(Argument((word,), _slashed(word), None, Category.UNKNOWN))
            at += 1
        elif spec.role is Role.END:
            rest = tuple(arguments[at:])
            reader.arguments.append(Argument(rest, spec.name, " ".join(rest[1:]), spec.category))
            break
        else:
            at += _read_flag(reader, spec, joined, arguments[at : at + 2])
    return _invocation(reader, response_files)


def _read_flag(reader: _Reader, spec: Spec, joined: bool, words: Sequence[str]) -> int:
    """Keep one flag; how many words it took."""
    value: str | None = None
    taken: tuple[str, ...] = (words[0],)
    if joined:
        value = words[0][len(spec.name) :]
        if spec.name in _WITH_COLON:
            value = value.removeprefix(":")
    elif spec.shape is not Shape.ALONE and len(words) > 1:
        value, taken = words[1], tuple(words)
    reader.arguments.append(Argument(taken, spec.canonical or spec.name, value, spec.category))
    if spec.role is not Role.PLAIN:
        reader.take(spec, value)
    return len(taken)


def _find(word: str) -> tuple[Spec | None, bool]:
    if word[:1] not in ("/", "-") or _is_source(word):
        return None, False
    found = MSVC_FLAGS.find(word)
    return found if found[0] is not None else MSVC_FLAGS.find(_slashed(word))


def _slashed(word: str) -> str:
    return "/" + word[1:] if word[:1] == "-" and word[:2] != "--" else word


def _is_source(word: str) -> bool:
    """``/home/a.c`` is a source; ``/Tphome/a.c`` and ``/DX=a.c`` are flags."""
    return word[:1] == "/" and word.count("/") > 1 and language_of(word) is not Language.OTHER and not _known(word)


def _known(word: str) -> bool:
    return word[1:3] in ("Tc", "Tp", "Fo", "Fe", "FI") or word[1:2] in ("D", "U", "I")


def _input(reader: _Reader, path: str) -> None:
    reader.inputs.append((path, None))
    reader.arguments.append(Argument((path,), "", path, Category.INPUT))


def _invocation(reader: _Reader, response_files: tuple[str, ...]) -> Invocation:
    mode = next((each for each in _BY_WEIGHT if each in reader.modes), Mode.LINK)
    inputs = tuple((path, own or reader.language or language_of(path)) for path, own in reader.inputs)
    output = reader.output
    if mode is Mode.COMPILE and len(inputs) == 1:
        base = inputs[0][0].replace("\\", "/").rpartition("/")[2].rpartition(".")[0] + ".obj"
        if not output:
            output = base
        elif output[-1] in "/\\":
            output += base  # a directory: the object's name is the source's
        elif "." not in output.replace("\\", "/").rpartition("/")[2]:
            output += ".obj"
    return Invocation(
        compiler=reader.compiler,
        family=Family.MSVC,
        arguments=tuple(reader.arguments),
        mode=mode,
        inputs=inputs,
        output=output,
        output_named=bool(reader.output),
        response_files=response_files,
    )
