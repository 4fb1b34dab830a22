"""Reads the whole history of a scheduler from its database and finds what contradicts itself.

Three witnesses tell of every task: its life (table ``tasks``), its story (``task_events``) and the ledger (``audit``).
They are written in one transaction, so whatever was killed, they must agree.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from corral.ledger.model import AuditRow
from corral.tasks.model import Phase, Run, Task, TaskDefinition, TaskEvent, TaskLife

_RUN_ENDS: Final = frozenset({"resolved", "run-claim-expired", "run-worker-shutdown", "run-intermittent-task"})


@dataclass(slots=True)
class TaskHistory:
    """Everything that is known of one task. ``column`` is its phase as the index has it."""

    task: Task
    column: Phase
    story: list[TaskEvent] = field(default_factory=list)
    audit: list[AuditRow] = field(default_factory=list)

    def kinds(self, run: int | None = None) -> list[str]:
        """The kinds of its story's lines, in order; of one run when it is named."""
        return [event.kind for event in self.story if run is None or event.run == run]


def read_history(database: Path) -> dict[str, TaskHistory]:
    """All tasks of a SQLite database, by id."""
    found: dict[str, TaskHistory] = {}
    orphans: list[str] = []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        query = "SELECT id, tenant, phase, group_id, definition, life FROM tasks"
        for task_id, tenant, phase, group, definition, life in connection.execute(query):
            task = Task(
                id=task_id,
                tenant=tenant,
                group=group,
                definition=msgspec.json.decode(definition, type=TaskDefinition),
                life=msgspec.json.decode(life, type=TaskLife),
            )
            found[task_id] = TaskHistory(task, Phase(phase))
        query = "SELECT seq, task_id, at_s, kind, text, run, worker_id FROM task_events ORDER BY seq"
        for seq, task_id, at_s, kind, text, run, worker in connection.execute(query):
            event = TaskEvent(seq=seq, task_id=task_id, at_s=at_s, kind=kind, text=text, run=run, worker=worker)
            found[task_id].story.append(event)
        for task_id, facts in connection.execute("SELECT task_id, facts FROM audit ORDER BY seq"):
            if task_id in found:
                found[task_id].audit.append(msgspec.json.decode(facts, type=AuditRow))
            else:
                orphans.append(task_id)
    assert not orphans, f"audit rows of tasks that do not exist: {orphans}"
    return found


def contradictions(history: dict[str, TaskHistory]) -> list[str]:
    """What cannot be, in one sentence each; tasks that are not resolved are among it."""
    return [f"{task_id}: {wrong}" for task_id, each in history.items() for wrong in _of_task(each)]


def _of_task(history: TaskHistory) -> Iterator[str]:
    life, kinds = history.task.life, history.kinds()
    if not life.phase.final:
        yield f"is {life.phase}, not resolved"
        return
    if history.column is not life.phase:
        yield f"is {life.phase} and listed as {history.column}"
    if kinds[:1] != ["submitted"] or kinds.count("submitted") != 1:
        yield f"was not submitted once: {kinds}"
    if kinds.count("resolved") != 1 or kinds[-1] != "resolved":
        yield f"was not resolved once, and last: {kinds}"
    yield from _of_runs(history)
    yield from _of_ledger(history)


def _of_runs(history: TaskHistory) -> Iterator[str]:
    life = history.task.life
    for number, run in enumerate(life.runs):
        last = number == len(life.runs) - 1
        if not run.phase.final:
            yield f"run {number} is {run.phase} although the task is {life.phase}"
        if last and (run.phase, run.reason) != (life.phase, life.reason):
            yield f"ended as {life.phase} ({life.reason}), its last run as {run.phase} ({run.reason})"
        if not last and not (run.phase is Phase.EXCEPTION and run.reason is not None and run.reason.retried):
            yield f"run {number} ended as {run.phase} ({run.reason}) and yet another followed"
        yield from _of_story(history, number, run)
    tokens = [run.token for run in life.runs if run.token]
    if tokens != sorted(set(tokens)):
        yield f"tokens do not grow: {tokens}"
    instants = [
        at_s for run in life.runs for at_s in (run.claimed_s, run.started_s, run.resolved_s) if at_s is not None
    ]
    if instants != sorted(instants):
        yield f"two runs overlap: {instants}"


def _of_story(history: TaskHistory, number: int, run: Run) -> Iterator[str]:
    kinds = history.kinds(number)
    if kinds.count("claimed") - kinds.count("returned") != (run.token > 0):  # given back, it has no token
        yield f"run {number} has token {run.token} and the story {kinds}"
    if kinds.count("started") != (run.started_s is not None):
        yield f"run {number} started at {run.started_s} and has the story {kinds}"
    ends = [kind for kind in kinds if kind in _RUN_ENDS]
    exhausted = ["run-claim-expired", "resolved"]  # no retries were left: the run's end, then the task's
    if len(ends) != 1 and ends != exhausted:
        yield f"run {number} did not end once: {kinds}"


def _of_ledger(history: TaskHistory) -> Iterator[str]:
    life = history.task.life
    held = {number: run for number, run in enumerate(life.runs) if run.token}
    told = [row.run for row in history.audit]
    if sorted(told) != sorted(held):
        yield f"the ledger tells of runs {told}, workers held {sorted(held)}"
    for row in history.audit:
        found = held.get(row.run)
        reason = "" if found is None or found.reason is None else found.reason.value
        if found is not None and (row.phase, row.reason) != (found.phase.value, reason):
            yield f"run {row.run} ended as {found.phase} ({reason}), in the ledger as {row.phase} ({row.reason})"
    if sum(row.phase == "completed" for row in history.audit) != (life.phase is Phase.COMPLETED):
        yield f"is {life.phase}, and in the ledger {[row.phase for row in history.audit]}"
