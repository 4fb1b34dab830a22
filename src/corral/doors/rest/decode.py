"""Request bodies to values, with all mistakes at once instead of the first."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from corral.kernel.errors import CallerError, InvalidSpec
from corral.kernel.json import MALFORMED, why_malformed
from corral.kernel.units import parse_duration_s
from corral.tasks.model import TaskDefinition
from corral.tasks.payload_decode import Mistakes, decode_value
from corral.tasks.submission import PayloadCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was sent: one task, or a batch with ids that the client chose (or none)."""

    definitions: tuple[TaskDefinition, ...]
    batch: bool
    ids: tuple[str, ...] = ()


def decode_submission(body: bytes, *, batch_tasks: int, check_payload: PayloadCheck) -> Submission:
    """The tasks of a submission: a single task, or a batch ``{"tasks": […], "ids": […]}``.

    Durations may be written as text ("10m"). Payloads are checked by whoever queues the tasks, and here only when
    there are other mistakes. Raises InvalidSpec with every mistake of every task.
    """
    try:
        sent = msgspec.json.decode(body)
    except MALFORMED as error:
        raise CallerError(f"the body is not JSON: {why_malformed(error)}") from error
    if not isinstance(sent, dict):
        raise InvalidSpec('the body must be one task, or {"tasks": [...]}', field="body")
    if "tasks" not in sent:
        return Submission(definitions=_decode_all([sent], "", check_payload), batch=False)
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
    return Submission(definitions=_decode_all(tasks, "tasks", check_payload), batch=True, ids=tuple(ids))


def _decode_all(sent: list[Any], at: str, check_payload: PayloadCheck) -> tuple[TaskDefinition, ...]:
    with suppress(msgspec.ValidationError):
        return msgspec.convert(sent, tuple[TaskDefinition, ...])  # right, as nearly always
    mistakes = Mistakes()
    decoded = []
    for index, each in enumerate(sent):
        place = f"{at}[{index}]" if at else ""
        if not isinstance(each, dict):
            mistakes.add(f"{place}: must be an object with the fields of a task")
            continue
        decoded.append(decode_value(_with_durations(each, place, mistakes), TaskDefinition, place, mistakes))
        if isinstance(each.get("payload"), dict):
            for text in check_payload(each["payload"]):
                mistakes.add(f"{place}.{text}" if place else text)
    found = mistakes.found
    if found:
        raise InvalidSpec(f"{found[0]} (and {len(found) - 1} more)" if found[1:] else found[0], mistakes=tuple(found))
    return tuple(definition for definition in decoded if definition is not None)


def _with_durations(sent: dict[str, Any], at: str, mistakes: Mistakes) -> dict[str, Any]:
    """Durations as numbers; one that is none is left out, so that it is not a mistake twice."""
    values = dict(sent)
    for key, value in sent.items():
        if key in TaskDefinition.__struct_fields__ and key.endswith("_s") and isinstance(value, str):
            try:
                values[key] = parse_duration_s(value, field=f"{at}.{key}" if at else key)
            except InvalidSpec as error:
                mistakes.add(error.message)
                del values[key]
    return values
