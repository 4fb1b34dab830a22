"""Which headers the text of a file can ask for, whatever its conditions say: more than a compile reads, never less, or
the answer is that nobody can tell. Pure.

Conditions are not evaluated and comments not taken out: a name may be one that no compile looks for, which is harmless.
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec


class Directives(msgspec.Struct, frozen=True):
    """What a text asks for.

    Attributes:
        names: names of headers, each with True when it stands in quotes.
        every: names behind ``include_next``: any file of that name along the search path may be meant.
        macros: macros that stand where a name should, so whatever they are defined as is meant.
        opaque: macros with more behind them, arguments most of all: where somebody defines them, nobody can tell.
        clear: False when nobody can tell at all.
    """

    names: tuple[tuple[str, bool], ...] = ()
    every: tuple[str, ...] = ()
    macros: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()
    clear: bool = True


NOTHING: Final = Directives()
UNCLEAR: Final = Directives(clear=False)

_BLANK: Final = rb"[ \t\v\f\r]*"
_GAP: Final = rb"(?:[ \t\v\f\r]|/\*(?>(?s:.*?)\*/))*"
_BEGIN: Final = rb"(?:^|\*/)" + _BLANK + rb"(?:#|%:)" + _GAP
"""Of a directive: at the beginning of a line, or behind a comment that may have begun on any line before."""
_INCLUDE: Final = re.compile(_BEGIN + rb"(include_next|include|import)(?!\w)" + _GAP + rb"([^\n]*)", re.MULTILINE)
_CONTINUED: Final = re.compile(rb"\\[ \t\v\f\r]*\n")
_OPERAND: Final = re.compile(rb"\"([^\"\n]+)\"|<([^>\n]+)>|([A-Za-z_]\w*)(" + _BLANK + rb"(?:/[/*].*)?$)?")
_LEADING: Final = re.compile(rb"^" + _GAP)
_TRIGRAPHS: Final = (b"??=", b"??/")


def directives(content: bytes) -> Directives:
    """What ``content`` asks for by ``#include`` and its like."""
    text = _joined_lines(content)
    if b"include" not in text and b"import" not in text:
        return NOTHING
    if any(each in content for each in _TRIGRAPHS):
        return UNCLEAR
    found = _INCLUDE.findall(text)
    every = [operand for kind, operand in found if kind == b"include_next"]
    asked = _understood([operand for kind, operand in found if kind != b"include_next"])
    again = _understood(every)
    opaque = (*asked.opaque, *again.macros, *again.opaque)
    return msgspec.structs.replace(asked, every=tuple(name for name, _ in again.names), opaque=opaque)


def definitions(content: bytes, macro: str) -> Directives:
    """What ``macro`` can stand for by the definitions in ``content``; NOTHING without any."""
    name = macro.encode("utf-8", "surrogateescape")
    text = _joined_lines(content)
    if name not in text:
        return NOTHING
    define = re.compile(_BEGIN + rb"define(?!\w)" + _GAP + re.escape(name) + rb"(?!\w)([^\n]*)", re.MULTILINE)
    bodies = define.findall(text)
    return _defined(bodies) if bodies else NOTHING


def definition(body: str) -> Directives:
    """What a macro stands for that is defined as ``body``."""
    return _defined([body.encode("utf-8", "surrogateescape")])


def _defined(bodies: Sequence[bytes]) -> Directives:
    operands = [_LEADING.sub(b"", body) for body in bodies]
    return _understood(operands) if all(map(_OPERAND.match, operands)) else UNCLEAR


def _joined_lines(content: bytes) -> bytes:
    return _CONTINUED.sub(b"", content) if b"\\" in content else content


def _understood(operands: Sequence[bytes]) -> Directives:
    """What does not begin like a name is none: text in a comment, or a mistake that the compiler will tell."""
    names: dict[tuple[str, bool], None] = {}
    macros: dict[str, None] = {}
    opaque: dict[str, None] = {}
    for found in filter(None, map(_OPERAND.match, operands)):
        name = (found[1] or found[2] or found[3]).decode("utf-8", "surrogateescape")
        if found[3] is None:
            names[name, found[1] is not None] = None
        else:
            (opaque if found[4] is None else macros)[name] = None
    return Directives(tuple(names), macros=tuple(macros), opaque=tuple(opaque))
