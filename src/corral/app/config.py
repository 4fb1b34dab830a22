"""The one typed configuration tree: TOML file, ``CORRAL_*`` environment, flags; later ones win.

Components define their own sections; this module assembles them. Every process parses the whole tree once, at its
start, and hands each part only its section. What is wrong is reported all at once, each mistake with its place.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from corral.app.config_decode import Mistakes, decode_section, environment_tree, merge
from corral.app.config_sections import Config
from corral.kernel.errors import InvalidSpec

DEFAULT_FILE: Final = "corral.toml"


def load_config(
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Config:
    """Read the configuration: flags over environment over file over defaults.

    ``file`` is what ``--config`` names; without it ``CORRAL_CONFIG``, then ``corral.toml`` in ``directory`` (the
    current one) when it exists. ``flags`` maps dotted keys (``"scheduler.http"``) to values; None means "not given".

    Raises:
        InvalidSpec: with every mistake of every source in ``mistakes``.
    """
    environment = os.environ if env is None else env
    mistakes = Mistakes()
    tree = _file_tree(_chosen_file(file, environment, directory or Path.cwd()))
    tree = merge(tree, environment_tree(environment, Config, mistakes))
    for key, value in (flags or {}).items():
        if value is not None:
            tree = merge(tree, _nested(key.split("."), value))
    config = decode_section(Config, tree, "", mistakes)
    mistakes.raise_if_any()
    assert config is not None  # decode_section gives None only together with a mistake
    problems = config.contradictions()
    if problems:
        raise InvalidSpec(_summary(problems), mistakes=tuple(problems))
    return config


def config_tree(config: Config) -> dict[str, Any]:
    """The whole configuration as plain values, secrets masked."""
    tree: dict[str, Any] = _masked(msgspec.to_builtins(config))
    return tree


def config_as_toml(config: Config) -> str:
    """The whole configuration, secrets masked, as TOML that :func:`load_config` reads back."""
    lines: list[str] = []
    _write_table(lines, "", config_tree(config))
    return "\n".join(lines).strip() + "\n"


def _chosen_file(file: Path | None, env: Mapping[str, str], directory: Path) -> Path | None:
    if file is not None:
        return file
    if named := env.get("CORRAL_CONFIG"):
        return Path(named)
    here = directory / DEFAULT_FILE
    return here if here.is_file() else None


def _file_tree(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSpec(f"{file}: cannot be read: {error.strerror}", field="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{file}: is not TOML: {error}", field="config") from error


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {path[-1]: value}
    for key in reversed(path[:-1]):
        tree = {key: tree}
    return tree


def _summary(mistakes: list[str]) -> str:
    return mistakes[0] if len(mistakes) == 1 else f"the configuration has {len(mistakes)} mistakes"


_SECRET: Final = re.compile("(.*_)?(tokens?|secrets?|password)|.*_secret|.*_key|(.*_)?access_key_id|secret_.*")
"""Names of what is masked: tokens, secrets, and the keys among an object store's options (``tls.key`` is a path)."""
_PASSWORD: Final = re.compile(r"(?<=://)([^/@]*):[^/@]*@")


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(each) if _SECRET.fullmatch(key) else _masked(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each) for each in value]
    return _PASSWORD.sub(r"\1:***@", value) if isinstance(value, str) else value


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return dict.fromkeys(value, "***")
    if isinstance(value, list | tuple):
        return ["***" for _ in value]
    return "***" if value else value


def _write_table(lines: list[str], prefix: str, table: Mapping[str, Any]) -> None:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and value is not None}
    if plain and prefix:
        lines.append(f"\n[{prefix}]")
    for key, value in plain.items():
        lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(lines, f"{prefix}.{_toml_key(key)}" if prefix else _toml_key(key), value)


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else msgspec.json.encode(key).decode()


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(each) for each in value) + "]"
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{_toml_key(key)} = {_toml_value(each)}" for key, each in value.items() if each is not None)
            + " }"
        )
    return msgspec.json.encode(value).decode()  # strings, numbers and booleans are written alike in JSON and TOML
