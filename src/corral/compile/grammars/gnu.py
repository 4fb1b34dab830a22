"""Reading a command line of gcc or clang. Pure; one pass, one look-up for each argument."""

from collections.abc import Sequence
from typing import Final

from corral.compile.grammars.gnu_table import GNU_FLAGS
from corral.compile.grammars.languages import language_of, named_language
from corral.compile.grammars.names import default_language
from corral.compile.grammars.table import Role, Shape, Spec
from corral.compile.model import (
    Argument,
    Category,
    DependencyFile,
    Family,
    Invocation,
    Language,
    Mode,
)

STDIN: Final = "-"
_MODES: Final = {
    "-c": Mode.COMPILE,
    "-S": Mode.ASSEMBLE,
    "-E": Mode.PREPROCESS,
    "-M": Mode.DEPENDENCIES,
    "-MM": Mode.DEPENDENCIES,
    "-fsyntax-only": Mode.SYNTAX,
    "--version": Mode.QUERY,
}
_BY_WEIGHT: Final = (Mode.QUERY, Mode.DEPENDENCIES, Mode.PREPROCESS, Mode.SYNTAX, Mode.ASSEMBLE, Mode.COMPILE)


class _Reader:
    """What is known after the arguments so far."""

    def __init__(self, compiler: str) -> None:
        self.compiler = compiler
        self.arguments: list[Argument] = []
        self.modes: set[Mode] = set()
        self.inputs: list[tuple[str, Language]] = []
        self.language: Language | None = None
        self.output: str | None = None
        self.wants_dependencies = False
        self.system_headers = False
        self.phony = False
        self.dependency_path: str | None = None
        self.targets: list[tuple[str, str]] = []
        self.default_dependency_path = True

    def take(self, spec: Spec, value: str | None) -> None:
        """What a flag with a role of its own changes."""
        name = spec.canonical or spec.name
        if spec.role is Role.MODE:
            self.modes.add(_MODES[name])
        elif spec.role is Role.OUTPUT:
            self.output = value
        elif spec.role is Role.LANGUAGE:
            self.language = None if value in (None, "none") else named_language(value or "")
        elif spec.role is Role.DEPENDENCY:
            self.dependency(name, value)
        elif spec.role is Role.PREPROCESSOR and value is not None and name == "-Wp,":
            self.inner(value.split(","))

    def dependency(self, name: str, value: str | None) -> None:
        """One of the -M… flags that go with a compile."""
        if name in ("-MD", "-MMD"):
            self.system_headers = name == "-MD" or (self.wants_dependencies and self.system_headers)
            self.wants_dependencies = True
        elif name == "-MP":
            self.phony = True
        elif name == "-MF":
            self.dependency_path = value
        elif name in ("-MT", "-MQ") and value is not None:
            self.targets.append((name, value))

    def inner(self, words: Sequence[str]) -> None:
        """Flags for the preprocessor inside of ``-Wp,``: -MD and -MMD take the file as their value there."""
        at = 0
        while at < len(words):
            name = words[at]
            value = words[at + 1] if name in _INNER_WITH_VALUE and at + 1 < len(words) else None
            at += 1 if value is None else 2
            if name in ("-MD", "-MMD"):
                self.dependency(name, None)
                self.dependency_path = value or self.dependency_path
                self.default_dependency_path = False
            elif name in ("-MF", "-MT", "-MQ", "-MP"):
                self.dependency(name, value)

    def input(self, path: str) -> None:
        """A source, or a file for the linker."""
        language = self.language
        if language is None:
            language = default_language(self.compiler, language_of(path))
        self.inputs.append((path, language))
        self.arguments.append(Argument((path,), "", path, Category.INPUT))


_INNER_WITH_VALUE: Final = frozenset({"-MD", "-MMD", "-MF", "-MT", "-MQ"})


def read_gnu(compiler: str, arguments: Sequence[str], response_files: tuple[str, ...]) -> Invocation:
    """Understand the arguments behind ``compiler``; response files are expanded already."""
    reader = _Reader(compiler)
    keep, remembered = reader.arguments.append, GNU_FLAGS.remembered
    at, count = 0, len(arguments)
    while at < count:
        word = arguments[at]
        known = remembered.get(word)
        if known is not None:
            keep(known)
            at += 1
        elif word == "--":
            keep(Argument((word,), word, None, Category.OTHER))
            for path in arguments[at + 1 :]:
                reader.input(path)
            break
        elif word[:1] != "-" or word == STDIN:
            reader.input(word)
            at += 1
        else:
            at += _read_flag(reader, word, arguments[at + 1] if at + 1 < count else None)
    return _invocation(reader, response_files)


def _read_flag(reader: _Reader, word: str, following: str | None) -> int:
    """Keep one flag; how many words it took."""
    spec, joined = GNU_FLAGS.find(word)
    if spec is None:
        argument = Argument((word,), word, None, Category.UNKNOWN)
        reader.arguments.append(argument)
        GNU_FLAGS.remember(word, argument)
        return 1
    words: tuple[str, ...] = (word,)
    value: str | None = None
    if joined:
        value = word[len(spec.name) :]
    elif spec.shape is not Shape.ALONE and following is not None:
        value = following
        words = (word, following)
    argument = Argument(words, spec.canonical or spec.name, value, spec.category)
    reader.arguments.append(argument)
    if spec.role is not Role.PLAIN:
        reader.take(spec, value)
    elif joined or spec.shape is Shape.ALONE:
        GNU_FLAGS.remember(word, argument)
    return len(words)


def _invocation(reader: _Reader, response_files: tuple[str, ...]) -> Invocation:
    mode = next((each for each in _BY_WEIGHT if each in reader.modes), Mode.LINK)
    if mode is Mode.QUERY and reader.inputs:
        mode = Mode.LINK  # whatever the driver makes of it, it is not for us
    output = reader.output
    if output is None and mode is Mode.COMPILE and len(reader.inputs) == 1:
        output = _stem(_base(reader.inputs[0][0])) + ".o"
    return Invocation(
        compiler=reader.compiler,
        family=Family.GNU,
        arguments=tuple(reader.arguments),
        mode=mode,
        inputs=tuple(reader.inputs),
        output=output,
        output_named=reader.output is not None,
        dependency_file=_dependency_file(reader, mode),
        response_files=response_files,
    )


def _dependency_file(reader: _Reader, mode: Mode) -> DependencyFile | None:
    if not reader.wants_dependencies or mode not in (Mode.COMPILE, Mode.ASSEMBLE, Mode.LINK):
        return None
    path = reader.dependency_path
    if path is None:  # as the driver chooses: beside the output, else here
        named = reader.output if reader.output is not None else _base(reader.inputs[0][0] if reader.inputs else "")
        path = _stem(named) + ".d"
    return DependencyFile(
        path=path, system_headers=reader.system_headers, targets=tuple(reader.targets), phony=reader.phony
    )


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _stem(path: str) -> str:
    """The path without the suffix of its last part."""
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") else path
