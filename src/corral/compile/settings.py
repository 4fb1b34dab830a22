"""Reads the ``compile`` section alone, for the daemon and the command line: file, then ``CORRAL_COMPILE__…``.

Two underscores more lead into a section below: ``CORRAL_COMPILE__REMOTE__SCHEDULER``.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from corral.compile.limits import CompileConfig
from corral.kernel.errors import InvalidSpec
from corral.kernel.units import parse_duration_s, parse_size

_PREFIX = "CORRAL_COMPILE__"


def config_file(environment: Mapping[str, str]) -> Path | None:
    """``CORRAL_CONFIG``, else ``corral/corral.toml`` in the user's configuration directory when it exists."""
    if named := environment.get("CORRAL_CONFIG"):
        return Path(named)
    base = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
    file = Path(base) / "corral" / "corral.toml"
    return file if file.is_file() else None


def load_compile_config(environment: Mapping[str, str]) -> CompileConfig:
    """Raises InvalidSpec with every mistake."""
    tree = _file_section(config_file(environment))
    for name, value in environment.items():
        if name.startswith(_PREFIX):
            tree = _with(tree, name.removeprefix(_PREFIX).lower().split("__"), value)
    known = {field.name: field.type for field in msgspec.structs.fields(CompileConfig)}
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in known:
            mistakes.append(f"compile.{key}: is not a known key; known here: {', '.join(sorted(known))}")
            continue
        try:
            values[key] = _value(key, value, known[key])
        except InvalidSpec as error:
            mistakes.append(error.message)
        except msgspec.ValidationError as error:
            mistakes.append(f"compile.{key}: {error}")
    if mistakes:
        raise InvalidSpec(mistakes[0], mistakes=tuple(mistakes))
    return CompileConfig(**values)


def _with(tree: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """``tree`` with a value at ``path``."""
    key, *below = path
    if not below:
        return {**tree, key: value}
    inner = tree.get(key)
    return {**tree, key: _with(inner if isinstance(inner, dict) else {}, below, value)}


def store_directory(config: CompileConfig, environment: Mapping[str, str]) -> Path:
    """Where the local results are."""
    if config.store:
        return Path(config.store).expanduser()
    base = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME') or '/tmp'}/.cache"
    return Path(base) / "corral-cc"


def _file_section(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        section = tomllib.loads(file.read_text(encoding="utf-8")).get("compile", {})
    except OSError as error:
        raise InvalidSpec(f"{file}: cannot be read: {error.strerror}", field="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{file}: is not TOML: {error}", field="config") from error
    if not isinstance(section, dict):
        raise InvalidSpec(f"{file}: compile: is a section with keys of its own, not a single value")
    return dict(section)


def _value(key: str, value: Any, kind: Any) -> Any:
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        below = {field.name: field.type for field in msgspec.structs.fields(kind)}
        value = {name: _value(name, each, below[name]) if name in below else each for name, each in value.items()}
        return msgspec.convert(value, kind)
    if key.endswith("_bytes") and not isinstance(value, bool):
        return parse_size(value, field=f"compile.{key}")
    if key.endswith("_s") and not isinstance(value, bool):
        return parse_duration_s(value, field=f"compile.{key}")
    if kind is bool and isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    return msgspec.convert(value, kind, strict=not isinstance(value, str))
