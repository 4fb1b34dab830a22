"""From an untyped payload, or a whole submission, to frozen sections, with *all* mistakes listed at once.

msgspec stops at the first mistake; a user who repairs a payload wants to hear every one. So this walks the value
along the types of the section: containers and Structs here, leaves by msgspec. A Struct checks what its types cannot
say in ``__post_init__`` and raises InvalidSpec whose ``mistakes`` each begin with the field's name.
"""

import difflib
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from corral.kernel.errors import InvalidSpec
from corral.kernel.json import why_invalid

Section = TypeVar("Section", bound=msgspec.Struct)
MISTAKES_MAX: Final = 100
"""More mistakes than this help nobody, and a hostile payload may hold a million."""
_WRONG: Final = object()


class Mistakes:
    """The mistakes found so far, in the order of the payload; bounded."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, text: str) -> None:
        """Note one more mistake."""
        if len(self.found) < MISTAKES_MAX:
            self.found.append(text)
        elif len(self.found) == MISTAKES_MAX:
            self.found.append(f"… and more; only the first {MISTAKES_MAX} mistakes are listed")


def decode_section(section: type[Section], values: dict[str, Any], at: str, mistakes: Mistakes) -> Section | None:
    """Build ``section`` from the keys that it knows; None when that is impossible (then ``mistakes`` grew).

    Fields that are wrong fall back to their default, so that the section's own checks still see the others.
    """
    with suppress(msgspec.ValidationError, InvalidSpec):  # right, as nearly always; else every mistake is looked for
        return msgspec.convert({name: values[name] for name in section.__struct_fields__ if name in values}, section)
    decoded, wrong = _fields(section, values, at, mistakes)
    return _checked(section, decoded, at, mistakes, wrong=wrong)


def _checked(
    section: type[Section], decoded: dict[str, Any], at: str, mistakes: Mistakes, *, wrong: bool
) -> Section | None:
    if any(name not in decoded for name in _required(section)):
        return None
    try:
        built = section(**decoded)
    except InvalidSpec as error:
        for text in error.mistakes:
            mistakes.add(_below(at, text))
        return None
    return None if wrong else built


def field_names(section: type[msgspec.Struct]) -> tuple[str, ...]:
    """The keys that a section takes."""
    return section.__struct_fields__


def any_required(section: type[msgspec.Struct]) -> bool:
    """True when a section cannot be made without a key."""
    return bool(_required(section))


def unknown_key(at: str, key: str, known: Iterable[str]) -> str:
    """The mistake for a key that nobody knows, with the nearest right one."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    shown = key[:60]
    if near:
        return f'{_below(at, shown)}: there is no such key; did you mean "{near[0]}"?'
    return f"{_below(at, shown)}: there is no such key; the keys here are {', '.join(names) or 'none'}"


def decode_value(value: Any, hint: type[Section], at: str, mistakes: Mistakes) -> Section | None:
    """Build a ``hint``, which takes all keys of ``value``; None when that is impossible (then ``mistakes`` grew)."""
    decoded = _decode(value, hint, at, mistakes)
    return None if decoded is _WRONG else decoded


def _fields(
    section: type[msgspec.Struct], values: dict[str, Any], at: str, mistakes: Mistakes
) -> tuple[dict[str, Any], bool]:
    decoded: dict[str, Any] = {}
    wrong = False
    for name, hint in _hints(section):
        if name in values:
            value = _decode(values[name], hint, _below(at, name), mistakes)
            if value is _WRONG:
                wrong = True
            else:
                decoded[name] = value
        elif name in _required(section):
            mistakes.add(f"{_below(at, name)}: is required")
            wrong = True
    return decoded, wrong


def _decode(value: Any, hint: Any, at: str, mistakes: Mistakes) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        rest = [each for each in get_args(hint) if each is not types.NoneType]
        if value is None and len(rest) < len(get_args(hint)):
            return None
        if len(rest) == 1:
            return _decode(value, rest[0], at, mistakes)
        return _leaf(value, hint, at, mistakes)
    if origin is tuple:
        return _sequence(value, get_args(hint)[0], at, mistakes)
    if origin is dict:
        return _table(value, get_args(hint)[1], at, mistakes)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _struct(value, hint, at, mistakes)
    return _leaf(value, hint, at, mistakes)


def _leaf(value: Any, hint: Any, at: str, mistakes: Mistakes) -> Any:
    if isinstance(hint, type) and issubclass(hint, StrEnum) and value not in list(hint):
        mistakes.add(f"{at}: {_shown(value)} is not one of {', '.join(hint)}")
        return _WRONG
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        mistakes.add(f"{at}: {why_invalid(error)}")
        return _WRONG


def _sequence(value: Any, hint: Any, at: str, mistakes: Mistakes) -> Any:
    if not isinstance(value, list | tuple):
        mistakes.add(f"{at}: expected a list, got {_kind(value)}")
        return _WRONG
    if hint is str and all(type(each) is str for each in value):
        return tuple(value)
    decoded = tuple(_decode(each, hint, f"{at}[{index}]", mistakes) for index, each in enumerate(value))
    return _WRONG if any(each is _WRONG for each in decoded) else decoded


def _table(value: Any, hint: Any, at: str, mistakes: Mistakes) -> Any:
    if not isinstance(value, dict):
        mistakes.add(f"{at}: expected an object, got {_kind(value)}")
        return _WRONG
    decoded = {str(key): _decode(each, hint, f"{at}.{str(key)[:60]}", mistakes) for key, each in value.items()}
    return _WRONG if any(each is _WRONG for each in decoded.values()) else decoded


def _struct(value: Any, hint: type[msgspec.Struct], at: str, mistakes: Mistakes) -> Any:
    if not isinstance(value, dict):
        mistakes.add(f"{at}: expected an object, got {_kind(value)}")
        return _WRONG
    known = field_names(hint)
    unknown = [str(key) for key in value if key not in known]
    for key in unknown:
        mistakes.add(unknown_key(at, key, known))
    decoded, wrong = _fields(hint, value, at, mistakes)
    if wrong:
        return _WRONG  # its own checks compare fields with each other: a default in place of one would mislead them
    built = _checked(hint, decoded, at, mistakes, wrong=False)
    return _WRONG if built is None or unknown else built


def _below(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _shown(value: Any) -> str:
    return f'"{value[:60]}"' if isinstance(value, str) else _kind(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


@cache
def _hints(section: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(section)  # descriptions stripped
    return tuple((name, hints[name]) for name in section.__struct_fields__)


@cache
def _required(section: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.name for field in msgspec.structs.fields(section) if field.required)
