"""Lists of what a compile read, as compilers write them: rules for make (-MD), lines on stderr (-H), lines on stdout
(/showIncludes). A name is as the compiler opened it: relative to the directory of the compile, or absolute. Pure.
"""

import re
from collections.abc import Sequence
from typing import Final

from corral.compile.paths import relative


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
