"""Response files: ``@FILE`` stands for the arguments in FILE.

GNU: as ``buildargv`` of libiberty and clang's GNU tokenizer split, with quotes and backslashes; a file that cannot be
read leaves the argument as it is. MSVC: as the C runtime of Windows splits a command line.
"""

from collections.abc import Callable, Sequence
from typing import Final

from corral.compile.model import Family

DEPTH_MAX: Final = 16
ARGUMENTS_MAX: Final = 100_000
_SPACE: Final = " \t\n\r\v\f"

ReadFile = Callable[[str], bytes | None]


class TooDeep(Exception):
    """Response files name each other without an end, or more arguments than a command line may have."""


def expand(
    arguments: Sequence[str], family: Family, read_file: ReadFile, seen: list[str], depth: int = 0
) -> tuple[str, ...]:
    """All arguments with every response file in its place; the names of those that were read are added to ``seen``.

    Raises TooDeep.
    """
    expanded: list[str] = []
    for argument in arguments:
        content = read_file(argument[1:]) if argument[:1] == "@" and len(argument) > 1 else None
        if content is None:
            expanded.append(argument)
            continue
        if depth >= DEPTH_MAX:
            raise TooDeep(argument)
        seen.append(argument[1:])
        split = split_gnu if family is Family.GNU else split_msvc
        expanded.extend(expand(split(_text(content)), family, read_file, seen, depth + 1))
        if len(expanded) > ARGUMENTS_MAX:
            raise TooDeep(argument)
    return tuple(expanded)


def _text(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="surrogateescape")
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")


def split_gnu(text: str) -> list[str]:
    """Words between white space; quotes of both kinds hold it together, a backslash takes the next character."""
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            word = [] if word is None else word
            word.append(next(characters, ""))
        elif quote:
            if character == quote:
                quote = ""
            elif word is not None:
                word.append(character)
        elif character in "'\"":
            quote = character
            word = [] if word is None else word
        elif character in _SPACE:
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            word = [] if word is None else word
            word.append(character)
    if word is not None:
        words.append("".join(word))
    return words


def split_msvc(text: str) -> list[str]:
    """Words between white space; ``"`` holds it together, backslashes count only in front of ``"``."""
    words: list[str] = []
    word: list[str] | None = None
    quoted = False
    at = 0
    while at < len(text):
        character = text[at]
        if character == "\\":
            run = len(text) - at - len(text[at:].lstrip("\\"))
            at += run
            before_quote = at < len(text) and text[at] == '"'
            word = [] if word is None else word
            word.append("\\" * (run // 2 if before_quote else run))
            if before_quote and run % 2:
                word.append('"')
                at += 1
            continue
        if character == '"':
            quoted = not quoted
            word = [] if word is None else word
        elif character in _SPACE and not quoted:
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            word = [] if word is None else word
            word.append(character)
        at += 1
    if word is not None:
        words.append("".join(word))
    return words
