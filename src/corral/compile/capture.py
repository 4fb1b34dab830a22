"""What is added to a command line so that a run tells what it read and prints as it would for a terminal. Pure.

Nothing that is added may change the object. gcc notes ``-H`` in debug information (DW_AT_producer) but not ``-MD`` nor
colours, and clang notes the whole command line when it is asked to, or writes CodeView; so there are several ways, and
a last one that adds nothing and asks the preprocessor once more, behind the build's back.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from corral.compile.model import Argument, Cacheable, Category, CompilerIdentity, Family, Invocation, Language, Vendor


class Source(StrEnum):
    """Where the list of what was read comes from."""

    NONE = "none"  # a preprocessed source reads nothing else
    MEMORY = "memory"  # make rules in the memory file of the wrapper
    GRAPH = "graph"  # clang's graph of includes in the memory file
    FILE = "file"  # the rules that the user asked for
    TREE = "tree"  # -H on stderr
    AGAIN = "again"  # the preprocessor is asked afterwards


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """A command line to run instead.

    Attributes:
        arguments: argv without the compiler.
        memory_word: index in argv (the compiler counts) of the word that is continued with the name of the memory file;
            0 for none.
        coloured: colours were forced on, because stderr is a terminal.
    """

    arguments: list[str]
    memory_word: int
    source: Source
    coloured: bool


_PREPROCESSED = frozenset(
    {
        Language.C_PREPROCESSED,
        Language.CXX_PREPROCESSED,
        Language.OBJC_PREPROCESSED,
        Language.OBJCXX_PREPROCESSED,
        Language.ASSEMBLER,
    }
)
_COLOUR_FLAGS = ("-fdiagnostics-color", "-fno-diagnostics-color", "-fcolor-diagnostics", "-fno-color-diagnostics")
_RECORDING = ("-frecord-", "-grecord-", "-fembed-bitcode", "-dwarf-debug-flags")


def capture(
    arguments: Sequence[str],
    invocation: Invocation,
    cacheable: Cacheable,
    identity: CompilerIdentity,
    *,
    terminal: bool,
) -> Capture:
    """How to run this compile. ``terminal``: stderr is one, and takes colours."""
    gnu = invocation.family is Family.GNU
    said = [word for each in invocation.arguments for word in each.words]  # also by response files
    recording = any(word.startswith(_RECORDING) for word in said)
    clang_records = recording and identity.vendor is not Vendor.GCC
    coloured = terminal and gnu and not clang_records and not any(word.startswith(_COLOUR_FLAGS) for word in said)
    front = ["-fdiagnostics-color=always"] if coloured else []
    source = _source(invocation, cacheable, identity, recording=recording)
    memory_word = 0
    if source is Source.MEMORY:
        front += ["-MD", "-MF", ""] if gnu else ["-clang:-MD", "-clang:-MF", "-clang:"]
        memory_word = len(front)
    elif source is Source.GRAPH:
        front += ["-Xclang", "-dependency-dot", "-Xclang", ""]
        memory_word = len(front)
    elif source is Source.TREE:
        front.append("-H")
    return Capture(arguments=[*front, *arguments], memory_word=memory_word, source=source, coloured=coloured)


def _source(invocation: Invocation, cacheable: Cacheable, identity: CompilerIdentity, *, recording: bool) -> Source:
    rules = invocation.dependency_file
    if cacheable.language in _PREPROCESSED:
        return Source.NONE
    if rules is not None and rules.system_headers:
        return Source.FILE
    debug = any(each.category is Category.DEBUG for each in invocation.arguments)
    if identity.vendor is not Vendor.GCC:
        if recording or (debug and invocation.family is Family.MSVC):
            return Source.AGAIN
        return Source.MEMORY if rules is None else Source.GRAPH
    if rules is None:
        return Source.MEMORY
    return Source.AGAIN if debug or recording else Source.TREE


def again(invocation: Invocation, *, rules: str) -> list[str]:
    """argv (without the compiler) that writes make rules to ``rules``, and nothing else: for :attr:`Source.AGAIN`.

    From the arguments, not from argv: what a response file holds would go on naming the object, which is there already.
    """
    cl = invocation.family is Family.MSVC
    asked = ["-clang:-M", "-clang:-MF", f"-clang:{rules}"] if cl else ["-M", "-MF", rules]
    return [*asked, *(word for each in invocation.arguments for word in _without_outputs(each))]


_OUTPUTS: Final = frozenset({"-c", "-o", "/c", "/Fo", "/showIncludes", "/showIncludes:user"})
_INNER_RULES: Final = ("-MD", "-MMD", "-MF", "-MT", "-MQ")


def _without_outputs(argument: Argument) -> Sequence[str]:
    """The words of an argument that ask for nothing to be written."""
    if argument.flag in _OUTPUTS or argument.category is Category.DEPENDENCIES:
        return ()
    if argument.flag != "-Wp,":
        return argument.words
    inner: list[str] = []
    skip = False
    for word in (argument.value or "").split(","):
        if not skip and word not in (*_INNER_RULES, "-MP"):
            inner.append(word)
        skip = not skip and word in _INNER_RULES
    return (f"-Wp,{','.join(inner)}",) if inner else ()


def read_graph(text: str) -> tuple[str, ...]:
    """The files in clang's graph of includes. It leaves out the slash in front of absolute names.

    Both readings of each name are given; the caller keeps those that exist, which may be more than was read.
    """
    names: dict[str, None] = {}
    for line in text.splitlines():
        _, label, rest = line.partition(' label="')
        if label:
            name = rest.rpartition('"')[0].replace('\\"', '"').replace("\\\\", "\\")
            names[name] = None
            names[f"/{name}"] = None
    return tuple(names)
