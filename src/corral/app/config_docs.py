"""Writes ``docs/reference/configuration.md`` from the sections themselves: names, types, defaults, meaning."""

import inspect
import re
from typing import Any, Final, get_args, get_origin

import msgspec

from corral.app.config_decode import is_section, is_size, section_fields
from corral.app.config_sections import Config
from corral.kernel.units import format_duration, format_size

_HEAD: Final = """\
# Configuration

Every process reads the same tree: flags over environment over file over default.

- **File**: TOML; `--config FILE`, else `CORRAL_CONFIG`, else `./corral.toml`.
- **Environment**: `CORRAL_` and the key in capitals, `__` between levels: `CORRAL_SCHEDULER__HTTP=0.0.0.0:7070`.
- **Flags**: some keys have their own (`--data-dir`, `--http`, `--grpc`); any key works as `--set worker.slots=16`.

Keys that end in `_bytes` or `_bytes_max` take sizes (`"512MiB"`, `"2GB"`), keys that end in `_s` take durations
(`"250ms"`, `"10m"`); bare numbers are bytes and seconds. Lists may be written `a,b` in the environment. Unknown keys
are refused, with the nearest right one, and all mistakes are listed at once. `corral config show` checks everything
and prints it.

This page is generated from the code (`python -m corral.app.config_docs > docs/reference/configuration.md`).
"""
_FIELD: Final = re.compile(r"^\s{4,}([a-z_]+(?:, [a-z_]+)*): (.*)$")


def reference() -> str:
    """The whole page."""
    lines = [_HEAD]
    _write_section(lines, "", Config)
    return "\n".join(lines).rstrip() + "\n"


def _write_section(lines: list[str], path: str, section: type) -> None:
    meanings = _meanings(section)
    plain = [field for field in section_fields(section) if not _below(field.type)]
    if path:
        lines.append(f"\n## `[{path}]`\n")
        lines.append(_summary(section) + "\n")
    if plain:
        lines.append("| key | type | default | meaning |\n|---|---|---|---|")
        for field in plain:
            default = "required" if field.required else default_cell(field.name, field.default)
            lines.append(
                f"| `{field.name}` | {_type(field.name, field.type)} | {default} | {meanings.get(field.name, '')} |"
            )
    for field in section_fields(section):
        for name, below in _below(field.type):
            _write_section(lines, ".".join(part for part in (path, field.name, name) if part), below)


def _below(kind: Any) -> list[tuple[str, type]]:
    """Sections inside a field's type, with what stands for a free name."""
    if is_section(kind):
        return [("", kind)]
    arguments = [each for each in get_args(kind) if each is not type(None) and each is not Ellipsis]
    if get_origin(kind) is dict and is_section(arguments[1]):
        return [("NAME", arguments[1])]
    if get_origin(kind) is tuple and arguments:
        members = get_args(arguments[0]) or (arguments[0],)
        if all(is_section(each) for each in members):
            return [(f'(kind = "{each.__struct_config__.tag}")', each) for each in members]
    return []


def _summary(section: type) -> str:
    text = inspect.cleandoc(section.__doc__ or "")
    return " ".join(text.split("\n\nAttributes:")[0].split()).replace("``", "`")


def _meanings(section: type) -> dict[str, str]:
    """Field descriptions from the docstring's Attributes."""
    _, _, attributes = (section.__doc__ or "").partition("Attributes:")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in attributes.splitlines():
        match = _FIELD.match(line)
        if match and set(match[1].split(", ")) <= {field.name for field in section_fields(section)}:
            names = match[1].split(", ")
            found.update(dict.fromkeys(names, match[2].strip()))
        elif names and line.strip():
            for name in names:
                found[name] += " " + line.strip()
    return {name: text.replace("|", "\\|").replace("``", "`") for name, text in found.items()}


def _type(name: str, kind: Any) -> str:
    if is_size(name) and kind is not str:
        return "size"
    if name.endswith("_s"):
        return "duration"
    if get_origin(kind) is tuple:
        return "list"
    if get_origin(kind) is dict:
        return "table"
    names = {bool: "true/false", int: "number", float: "number", str: "text"}
    plain = [each for each in get_args(kind) if each is not type(None)] or [kind]
    return names.get(plain[0], getattr(plain[0], "__name__", str(plain[0])))


def default_cell(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if is_size(name) and isinstance(value, int):
        return f"`{value}` ({format_size(value)})" if value >= 1024 else f"`{value}`"
    if name.endswith("_s") and isinstance(value, int | float):
        return f"`{value:g}` ({format_duration(value)})" if value >= 60 else f"`{value:g}`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{msgspec.json.encode(value).decode()}`"


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201 (this is what it is for)
