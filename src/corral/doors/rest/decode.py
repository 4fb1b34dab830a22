"""Request bodies to values, with all mistakes at once instead of the first."""

import difflib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from corral.kernel.errors import CallerError, InvalidSpec
from corral.kernel.units import parse_duration_s
from corral.tasks.model import TaskDefinition

_FIELDS = {field.name: field for field in msgspec.structs.fields(TaskDefinition)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was sent: one task, or a batch with ids that the client chose (or none)."""

    definitions: tuple[TaskDefinition, ...]
    batch: bool
    ids: tuple[str, ...] = ()


def decode_submission(body: bytes, *, batch_tasks: int) -> Submission:
    """The tasks of a submission: a single task, or a batch ``{"tasks": […], "ids": […]}``.

    Durations may be written as text ("10m"). Raises InvalidSpec with every mistake of every task.
    """
    try:
        sent = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise CallerError(f"the body is not JSON: {error}") from error
    if not isinstance(sent, dict):
        raise InvalidSpec('the body must be one task, or {"tasks": [...]}', field="body")
    if "tasks" not in sent:
        return Submission(definitions=_decode_all([sent], ""), batch=False)
    tasks, ids = sent["tasks"], sent.get("ids", [])
    problem = [f"{key}: is not a known key next to tasks" for key in sent if key not in ("tasks", "ids")]
    if not isinstance(tasks, list) or not tasks:
        problem.append("tasks: must be a list with at least one task")
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        problem.append("ids: must be a list of ids, one for each task")
    if problem:
        raise InvalidSpec("; ".join(problem), mistakes=tuple(problem))
    if len(tasks) > batch_tasks:
        raise InvalidSpec(f"tasks: {len(tasks)} are more than the {batch_tasks} that one request may hold")
    return Submission(definitions=_decode_all(tasks, "tasks"), batch=True, ids=tuple(ids))


def _decode_all(sent: list[Any], at: str) -> tuple[TaskDefinition, ...]:
    mistakes: list[str] = []
    decoded = [_decode_one(each, f"{at}[{index}]" if at else "", mistakes) for index, each in enumerate(sent)]
    if mistakes:
        summary = mistakes[0] if len(mistakes) == 1 else f"the submission has {len(mistakes)} mistakes"
        raise InvalidSpec(summary, mistakes=tuple(mistakes))
    return tuple(definition for definition in decoded if definition is not None)


def _decode_one(sent: Any, at: str, mistakes: list[str]) -> TaskDefinition | None:
    if not isinstance(sent, dict):
        mistakes.append(f"{at}: must be an object with the fields of a task")
        return None
    with suppress(msgspec.ValidationError):
        return msgspec.convert(sent, TaskDefinition)  # right, as nearly always; else every mistake is looked for
    before = len(mistakes)
    values: dict[str, Any] = {}
    for key, value in sent.items():
        path = f"{at}.{key}" if at else key
        if key not in _FIELDS:
            mistakes.append(_unknown(path, key))
            continue
        try:
            given = parse_duration_s(value, field=path) if key.endswith("_s") and isinstance(value, str) else value
            values[key] = msgspec.convert(given, _FIELDS[key].type)
        except InvalidSpec as error:
            mistakes.append(error.message)
        except msgspec.ValidationError as error:
            text, _, where = str(error).partition(" - at `$")
            mistakes.append(f"{path}{where.rstrip('`')}: {text[:1].lower()}{text[1:]}")
    for name, field in _FIELDS.items():
        if field.required and name not in sent:
            mistakes.append(f"{at}.{name}: is missing" if at else f"{name}: is missing")
    return TaskDefinition(**values) if len(mistakes) == before else None


def _unknown(path: str, key: str) -> str:
    meant = difflib.get_close_matches(key, _FIELDS, n=1)
    return f'{path}: is not a known key; did you mean "{meant[0]}"?' if meant else f"{path}: is not a known key"
