"""From a tree of untyped values to frozen sections, with all mistakes listed at once.

Sizes and durations are read by the suffix of their field: ``*_bytes`` (and ``*_bytes_max``) takes "2GB",
``*_s`` takes "10m".
Sections are msgspec Structs or frozen dataclasses; nothing here knows which sections there are.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec

from corral.kernel.errors import CallerError, InvalidSpec
from corral.kernel.json import why_invalid
from corral.kernel.units import parse_duration_s, parse_size

T = TypeVar("T")
_PREFIX: Final = "CORRAL_"
_NOT_CONFIGURATION: Final = frozenset(
    f"CORRAL_{name}" for name in ("CONFIG", "URL", "TOKEN", "CA_FILE", "FINGERPRINT", "DEBUG", "AGENT")
)
"""Variables with a meaning of their own; they name no configuration key. Nor do those of the compiler wrapper."""
_WRAPPER: Final = "CORRAL_CC_"


class Mistakes:
    """Collects what is wrong, so that the user hears everything at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, text: str) -> None:
        self.found.append(text)

    def raise_if_any(self) -> None:
        """Raises InvalidSpec with all mistakes."""
        if len(self.found) == 1:
            raise InvalidSpec(self.found[0])
        if self.found:
            raise InvalidSpec(f"the configuration has {len(self.found)} mistakes", mistakes=tuple(self.found))


@dataclasses.dataclass(frozen=True, slots=True)
class FieldType:
    """One key of a section: its type, and its default when it has one."""

    name: str
    type: Any
    required: bool
    default: Any


def is_section(kind: Any) -> bool:
    """Tell whether ``kind`` is a class with fields of its own."""
    return isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))


def section_fields(section: type) -> list[FieldType]:
    """The keys of a section, in order."""
    hints = typing.get_type_hints(section)
    if issubclass(section, msgspec.Struct):
        return [
            FieldType(each.name, hints[each.name], each.required, None if each.required else _struct_default(each))
            for each in msgspec.structs.fields(section)
        ]
    assert dataclasses.is_dataclass(section)  # is_section said so
    return [
        FieldType(
            each.name,
            hints[each.name],
            each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING,
            each.default_factory() if each.default_factory is not dataclasses.MISSING else _or_none(each.default),
        )
        for each in dataclasses.fields(section)
        if each.init
    ]


def decode_section(section: type[T], tree: Mapping[str, Any], at: str, mistakes: Mistakes) -> T | None:
    """Build ``section`` from ``tree``; None (and at least one mistake) when that is impossible. ``at`` is its path."""
    before = len(mistakes.found)
    known = {each.name: each for each in section_fields(section)}
    for key in tree:
        if key not in known:
            mistakes.add(_unknown(_join(at, key), key, known))
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in tree:
            values[name] = _decode(field.type, tree[name], _join(at, name), mistakes)
        elif field.required:
            mistakes.add(f"{_join(at, name)}: is missing")
    if len(mistakes.found) > before:
        return None
    try:
        return section(**values)
    except (ValueError, TypeError, CallerError) as error:
        for text in getattr(error, "mistakes", (str(error),)):
            mistakes.add(f"{at}: {text}" if at and not text.startswith(at) else text)
        return None


def environment_tree(env: Mapping[str, str], root: type, mistakes: Mistakes) -> dict[str, Any]:
    """``CORRAL_SCHEDULER__HTTP=…`` as ``{"scheduler": {"http": …}}``; two underscores go one level down."""
    tree: dict[str, Any] = {}
    for variable in sorted(env):
        if not variable.startswith(_PREFIX) or variable.startswith(_WRAPPER) or variable in _NOT_CONFIGURATION:
            continue
        path = variable.removeprefix(_PREFIX).lower().split("__")
        problem = _unknown_path(path, root)
        if problem:
            mistakes.add(f"environment variable {variable}: {problem}")
            continue
        value: Any = env[variable]
        for key in reversed(path):
            value = {key: value}
        tree = merge(tree, value)
    return tree


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees in one; where both have a value, ``upper``'s."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def is_size(name: str) -> bool:
    """Tell whether a field of this name holds bytes: ``blob_bytes``, ``log_bytes_max``."""
    return name.endswith(("_bytes", "_bytes_max"))


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """The known key that ``key`` was probably meant to be, or ""."""
    matches = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else ""


def _struct_default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _or_none(default: Any) -> Any:
    return None if default is dataclasses.MISSING else default


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _unknown(path: str, key: str, known: Mapping[str, FieldType]) -> str:
    meant = nearest(key, known)
    if meant:
        return f'{path}: is not a known key; did you mean "{meant}"?'
    return f"{path}: is not a known key; known here: {', '.join(sorted(known))}"


def _unknown_path(path: list[str], root: type) -> str:
    kind: Any = root
    for depth, key in enumerate(path):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            continue
        if not is_section(kind):
            return f'"{".".join(path[:depth])}" has no keys below it'
        known = {each.name: each for each in section_fields(kind)}
        if key not in known:
            return _unknown(".".join(path[: depth + 1]), key, known)
        kind = _without_none(known[key].type)
    return ""


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (typing.Union, types.UnionType):
        rest = [each for each in get_args(kind) if each is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return kind


def _decode(kind: Any, value: Any, at: str, mistakes: Mistakes) -> Any:
    inner = _without_none(kind)
    if value is None and inner is not kind:
        return None
    if is_section(inner):
        if not isinstance(value, Mapping):
            mistakes.add(f"{at}: is a section with keys of its own, not a single value")
            return None
        return decode_section(inner, value, at, mistakes)
    if choices := _tagged(inner):
        return _decode_tagged(choices, value, at, mistakes)
    origin = get_origin(inner)
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, str]):
        return _decode_mapping(inner, value, at, mistakes)
    if origin in (tuple, list) or inner in (tuple, list):
        return _decode_sequence(inner, value, at, mistakes)
    return _decode_scalar(inner, value, at, mistakes)


def _tagged(kind: Any) -> dict[str, Any]:
    """Structs of a union by their tag; empty when ``kind`` is no such union."""
    if get_origin(kind) not in (typing.Union, types.UnionType):
        return {}
    members = get_args(kind)
    if not all(isinstance(each, type) and issubclass(each, msgspec.Struct) for each in members):
        return {}
    return {str(each.__struct_config__.tag): each for each in members}


def _decode_tagged(choices: dict[str, Any], value: Any, at: str, mistakes: Mistakes) -> Any:
    tag_field = next(iter(choices.values())).__struct_config__.tag_field
    tag = value.get(tag_field) if isinstance(value, Mapping) else None
    if tag not in choices:
        mistakes.add(f"{at}.{tag_field}: must be one of {', '.join(sorted(choices))}")
        return None
    return decode_section(choices[tag], {key: each for key, each in value.items() if key != tag_field}, at, mistakes)


def _decode_mapping(kind: Any, value: Any, at: str, mistakes: Mistakes) -> Any:
    if not isinstance(value, Mapping):
        mistakes.add(f"{at}: is a table of names, not a single value")
        return None
    each_kind = get_args(kind)[1]
    return {str(name): _decode(each_kind, each, _join(at, str(name)), mistakes) for name, each in value.items()}


def _decode_sequence(kind: Any, value: Any, at: str, mistakes: Mistakes) -> Any:
    if isinstance(value, str):  # from the environment or a flag
        value = [each.strip() for each in value.split(",") if each.strip()]
    if not isinstance(value, list | tuple):
        mistakes.add(f"{at}: is a list")
        return None
    each_kind = (get_args(kind) or (str,))[0]
    items = [_decode(each_kind, each, f"{at}[{index}]", mistakes) for index, each in enumerate(value)]
    return items if get_origin(kind) is list else tuple(items)


def _decode_scalar(kind: Any, value: Any, at: str, mistakes: Mistakes) -> Any:
    field = at.rpartition(".")[2]
    try:
        if is_size(field) and kind is int and not isinstance(value, bool):
            return parse_size(value, field=at)
        if field.endswith("_s") and kind in (float, int) and not isinstance(value, bool):
            return kind(parse_duration_s(value, field=at))
        if kind is bool and isinstance(value, str):
            value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(value.lower())
            return msgspec.convert(value, bool)
        return msgspec.convert(value, kind, strict=not isinstance(value, str))
    except InvalidSpec as error:
        mistakes.add(error.message)
    except msgspec.ValidationError as error:
        mistakes.add(f"{at}: {why_invalid(error)}")
    return None
