"""What a submission must be (all mistakes at once, before anything is written), and how it becomes tasks.

A task can only depend on tasks that exist already or stand earlier in the same submission: no cycle can be written.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.kernel.errors import Conflict, InvalidSpec, QueueFull
from corral.kernel.ids import is_id
from corral.tasks.adapters import sql
from corral.tasks.limits import QueueLimits
from corral.tasks.machine import submitted
from corral.tasks.model import Phase, Requires, Task, TaskDefinition
from corral.tasks.unit import UnitOfWork

PayloadCheck = Callable[[Mapping[str, Any]], Sequence[str]]
"""All mistakes of a payload, as sentences; empty when it is right."""
RuntimeCheck = Callable[[str], str]
"""Why no worker of this fleet will ever offer the named runtime, as a sentence; "" when one may."""

_MISTAKES_MAX: Final = 100
_TEXT_MAX: Final = 200
_GROUP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*")  # a part of a URL
_DEADLINE_MIN_S: Final = 0.1
_encode: Final = msgspec.json.Encoder().encode


def checked(
    definitions: Sequence[TaskDefinition],
    ids: Sequence[str] | None,
    *,
    limits: QueueLimits,
    check_payload: PayloadCheck,
    check_runtime: RuntimeCheck,
) -> list[bytes]:
    """The definitions as JSON. Raises InvalidSpec with every mistake of every task."""
    if not definitions:
        raise InvalidSpec("tasks: a submission has at least one task")
    if len(definitions) > limits.submit_tasks:
        raise InvalidSpec(f"tasks: {len(definitions)} tasks in one submission; the most is {limits.submit_tasks}")
    mistakes = [] if ids is None else _wrong_ids(ids, len(definitions))
    encoded = []
    for place, definition in enumerate(definitions):
        prefix = f"tasks[{place}]." if len(definitions) > 1 else ""
        text, wrong = _checked_one(definition, limits, check_payload)
        if definition.runtime and (mistake := check_runtime(definition.runtime)):
            wrong.append(mistake)
        encoded.append(text)
        mistakes += [prefix + mistake for mistake in wrong]
    if mistakes:
        shown = mistakes[:_MISTAKES_MAX]
        if len(mistakes) > len(shown):
            shown.append(f"and {len(mistakes) - len(shown)} further mistakes")
        summary = mistakes[0] if len(mistakes) == 1 else f"{mistakes[0]} (and {len(mistakes) - 1} more)"
        raise InvalidSpec(summary, mistakes=tuple(shown))
    return encoded


def _checked_one(
    definition: TaskDefinition, limits: QueueLimits, check_payload: PayloadCheck
) -> tuple[bytes, list[str]]:
    wrong = [*_wrong_numbers(definition, limits), *_wrong_texts(definition), *_wrong_needs(definition, limits)]
    try:
        text = _encode(definition)
    except (TypeError, ValueError, UnicodeError, RecursionError) as error:
        return b"", [*wrong, f"payload: it cannot be written as JSON: {error}"]
    if len(text) > limits.definition_bytes:
        return text, [*wrong, f"a definition of {len(text)} bytes; the most is {limits.definition_bytes}"]
    return text, wrong + list(check_payload(definition.payload))


def _wrong_numbers(definition: TaskDefinition, limits: QueueLimits) -> list[str]:
    wrong = []
    if not _within(definition.deadline_s, _DEADLINE_MIN_S, limits.deadline_s):
        wrong.append(
            f"deadline_s: {definition.deadline_s}; it is between {_DEADLINE_MIN_S} and {limits.deadline_s:.0f} seconds"
        )
    if not _within(definition.expires_s, 0.0, limits.expires_s):
        wrong.append(f"expires_s: {definition.expires_s}; it is between 0 and {limits.expires_s:.0f} seconds")
    if not _within(definition.retries, 0, limits.retries):
        wrong.append(f"retries: {definition.retries}; it is between 0 and {limits.retries}")
    return wrong


def _wrong_texts(definition: TaskDefinition) -> list[str]:
    wrong = []
    if len(definition.name) > _TEXT_MAX or not _printable(definition.name):
        wrong.append(f"name: up to {_TEXT_MAX} printable characters")
    if definition.group and (len(definition.group) > _TEXT_MAX or not _GROUP.fullmatch(definition.group)):
        wrong.append(f'group: up to {_TEXT_MAX} of A-Z a-z 0-9 and ". _ : @ + -", the first a letter or a digit')
    if len(definition.runtime) > _TEXT_MAX or not _printable(definition.runtime):
        wrong.append("runtime: the name of a runtime, such as bubblewrap")
    return wrong


def _wrong_needs(definition: TaskDefinition, limits: QueueLimits) -> list[str]:
    wrong = []
    if len(definition.dependencies) > limits.dependencies:
        wrong.append(f"dependencies: {len(definition.dependencies)} of them; the most is {limits.dependencies}")
    if len(set(definition.dependencies)) < len(definition.dependencies):
        wrong.append("dependencies: each is named once")
    wrong += [
        f"dependencies: {needed[:60]!r} is not the id of a task"
        for needed in definition.dependencies
        if not is_id(needed, "task")
    ]
    return wrong


def _wrong_ids(ids: Sequence[str], count: int) -> list[str]:
    if len(ids) != count:
        return [f"ids: {len(ids)} ids for {count} tasks"]
    wrong = [f"ids: {text[:60]!r} is not the id of a task" for text in ids if not is_id(text, "task")]
    if len(set(ids)) < len(ids):
        wrong.append("ids: each task has its own")
    return wrong


def _within(value: float, least: float, most: float) -> bool:
    return math.isfinite(value) and least <= value <= most


def _printable(text: str) -> bool:
    return text == "" or text.isprintable()


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Checked definitions of one tenant with the ids that they will have; ``fresh`` when we have just made those."""

    tenant: str
    definitions: Sequence[TaskDefinition]
    encoded: Sequence[bytes]
    ids: Sequence[str]
    fresh: bool
    max_pending: int


async def accept(connection: AsyncConnection, unit: UnitOfWork, submission: Submission) -> list[Task]:
    """Add the tasks; a task whose id exists with the same definition is answered as it stands.

    Raises:
        Conflict: an id exists with another definition, or is another tenant's.
        InvalidSpec: a dependency does not exist in this tenant, or comes later in the submission.
        QueueFull: the tenant has its bound of waiting tasks.
    """
    existing = {} if submission.fresh else await sql.load(connection, submission.ids, locked=False)
    _check_existing(submission, existing)
    new = [place for place, task_id in enumerate(submission.ids) if task_id not in existing]
    if new:
        await _check_room(connection, submission, len(new))
    needed = {task_id for place in new for task_id in submission.definitions[place].dependencies}
    known = await sql.phases(connection, submission.tenant, needed, shared=True) if needed else {}
    if mistakes := _dependency_mistakes(submission, known):
        others = await sql.load(connection, needed - set(known), locked=False)  # of another tenant
        raise InvalidSpec(mistakes[0], mistakes=tuple(mistakes[:_MISTAKES_MAX]), foreign=bool(others))
    records = dict(existing)
    for place in new:
        task_id, definition = submission.ids[place], submission.definitions[place]
        waits_for = tuple(name for name in definition.dependencies if not _met(definition, known[name]))
        life, effects = submitted(
            definition,
            waits_for=waits_for,
            failed=failed_dependency(definition, known),
            now_s=unit.now_s + place * 1e-6,  # so that one submission is served in its own order
        )
        record = sql.Record(
            id=task_id,
            tenant=submission.tenant,
            group=definition.group or task_id,
            definition_json=submission.encoded[place],
            life=life,
        )
        unit.add(record, effects)
        records[task_id] = record
        known[task_id] = life.phase
    return [
        Task(
            id=task_id,
            tenant=submission.tenant,
            group=records[task_id].group,
            definition=definition,
            life=records[task_id].life,
        )
        for task_id, definition in zip(submission.ids, submission.definitions, strict=True)
    ]


def _met(definition: TaskDefinition, phase: Phase) -> bool:
    return phase.final if definition.requires is Requires.ALL_RESOLVED else phase is Phase.COMPLETED


def failed_dependency(definition: TaskDefinition, phases: Mapping[str, Phase]) -> str:
    """A dependency that can no longer become what the task requires; "" when there is none."""
    if definition.requires is Requires.ALL_RESOLVED:
        return ""
    failed = (
        name
        for name in definition.dependencies
        if name in phases and phases[name].final and phases[name] is not Phase.COMPLETED
    )
    return next(failed, "")


def _check_existing(submission: Submission, existing: Mapping[str, sql.Record]) -> None:
    for place, task_id in enumerate(submission.ids):
        record = existing.get(task_id)
        if record is not None and (record.tenant, record.definition_json) != (
            submission.tenant,
            submission.encoded[place],
        ):
            raise Conflict(f"the id {task_id} is taken by another task", cure="Let the queue choose ids.", id=task_id)


async def _check_room(connection: AsyncConnection, submission: Submission, count: int) -> None:
    waiting = await sql.count_waiting(connection, submission.tenant, bound=submission.max_pending + 1)
    if waiting + count > submission.max_pending:
        raise QueueFull(
            f"{waiting} tasks wait already and {count} more were submitted; the bound is {submission.max_pending}",
            cure="Wait until some have run, or raise max_pending of the tenant.",
            waiting=waiting,
            max_pending=submission.max_pending,
        )


def _dependency_mistakes(submission: Submission, known: Mapping[str, Phase]) -> list[str]:
    mistakes = []
    earlier = set(known)
    for place, definition in enumerate(submission.definitions):
        prefix = f"tasks[{place}]." if len(submission.definitions) > 1 else ""
        mistakes += [
            f"{prefix}dependencies: {name} does not exist" + (" before this task" if name in submission.ids else "")
            for name in definition.dependencies
            if name not in earlier
        ]
        earlier.add(submission.ids[place])
    return mistakes
