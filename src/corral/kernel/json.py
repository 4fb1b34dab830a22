"""JSON that strangers wrote: everything that decoding it can raise, and how to say it.

msgspec tells a mistake of syntax or type as ``DecodeError``, but bytes that are no UTF-8 and brackets that are nested
too deeply as errors of Python's own, which a door that knows only the first would answer with "internal error".
"""

import re
from typing import Final

import msgspec

MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What ``msgspec.json.decode`` raises for a text that is not what was asked for, whatever that text is."""

_KINDS: Final = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "a boolean",
    "array": "a list",
    "object": "an object",
}
_KIND: Final = re.compile(r"`([a-z]+(?: \| [a-z]+)*)`")


def why_malformed(error: BaseException) -> str:
    """The mistake in a few words that begin small, without a full stop."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return in_words(str(error).replace("`$[...]`", "a key").removeprefix("JSON is malformed: "))


def why_invalid(error: msgspec.ValidationError) -> str:
    """The same of a value whose place the caller names."""
    return in_words(str(error).partition(" - at ")[0])


def in_words(text: str) -> str:
    """What msgspec found wrong, without Python's names of kinds: "expected a string, got a whole number"."""
    if text.startswith("Expected "):
        text = _KIND.sub(lambda kinds: " or ".join(_KINDS.get(each, each) for each in kinds[1].split(" | ")), text)
    text = text.replace("`", "")
    return text[:1].lower() + text[1:]
