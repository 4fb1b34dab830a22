"""What options mean: `K=V`, `DIR:PATH`, `NAME:PATH` as parts of a task's definition."""

import posixpath
from pathlib import Path
from typing import Any

import msgspec

from corral.client import TaskDefinition
from corral.kernel.errors import InvalidSpec


def environment_of(pairs: list[str], *, option: str = "-e") -> dict[str, str]:
    """``["K=V"]`` as a mapping. Raises InvalidSpec for a pair without "="."""
    mistakes = [f'{option} "{pair}": write NAME=VALUE' for pair in pairs if "=" not in pair or pair.startswith("=")]
    if mistakes:
        raise InvalidSpec(mistakes[0], mistakes=tuple(mistakes))
    return dict(pair.split("=", 1) for pair in pairs)


_EARLIER = "artifact:"


def artifact_input_of(text: str) -> dict[str, Any] | None:
    """``artifact:TASK/NAME[:PATH]`` as an input that an earlier task made; None for a text of another form.

    Without PATH it keeps its name. Raises InvalidSpec when the task or the name is missing.
    """
    if not text.startswith(_EARLIER) or Path(text).exists():
        return None
    reference, _, place = text.removeprefix(_EARLIER).partition(":")
    task, _, name = reference.partition("/")
    if not (task and name):
        raise InvalidSpec(f'--input "{text}": write artifact:TASK/NAME or artifact:TASK/NAME:PATH', field="input")
    return {"path": posixpath.normpath(place or name), "artifact": {"task": task, "name": name}}


def input_of(text: str) -> tuple[Path, str]:
    """``DIR[:PATH]`` as the local path and the place below the working directory.

    A directory goes to the working directory itself, a file keeps its name. A local path with a colon that exists
    as it is written is taken as it is. Raises InvalidSpec when nothing is there.
    """
    whole = Path(text)
    head, colon, tail = text.rpartition(":")
    local, place = (whole, "") if whole.exists() or not colon else (Path(head), tail)
    if not local.exists():
        raise InvalidSpec(f'--input "{text}": there is nothing at {local}', field="input")
    if not place:
        place = "." if local.is_dir() else local.name
    return local, posixpath.normpath(place)


def artifact_of(path: str) -> dict[str, Any]:
    """``PATH`` as an artifact: a glob when it has wildcards, a directory when it ends with a slash, else a file.

    It is named by its path, so that it is fetched to the same place below the output directory.
    """
    if any(char in path for char in "*?["):
        return {"path": path, "type": "glob"}
    return {"path": path.rstrip("/") or path, "type": "directory" if path.endswith("/") else "file"}


def cache_of(text: str) -> dict[str, Any]:
    """``NAME:PATH`` as a cache. Raises InvalidSpec."""
    name, colon, path = text.partition(":")
    if not (name and colon and path):
        raise InvalidSpec(f'--cache "{text}": write NAME:PATH', field="cache")
    return {"name": name, "path": path}


def definition_of(values: dict[str, Any], *, over: TaskDefinition | None = None) -> TaskDefinition:
    """A definition from plain values, over those of another. Raises InvalidSpec naming the field."""
    base = msgspec.to_builtins(over) if over is not None else {}
    try:
        return msgspec.convert({**base, **values}, TaskDefinition)
    except msgspec.ValidationError as error:
        raise InvalidSpec(str(error).replace("`$.", "`")) from error
