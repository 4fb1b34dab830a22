"""Tasks in the database: every statement that the queue needs, each for a whole batch of tasks.

The functions take the connection of a transaction that the caller holds; what belongs together is written together.
The same statements run on SQLite and PostgreSQL (SQLite ignores the row locks: it has one writer). Rows are locked in
the order of their ids wherever several are, so that two schedulers cannot wait for each other.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.batch import ManyRows, execute_batches
from corral.database.query import Query
from corral.database.tables import artifacts, dependencies, idempotency_keys, task_events, tasks
from corral.tasks.machine import due_s
from corral.tasks.model import Artifact, ArtifactKind, Phase, Priority, Task, TaskDefinition, TaskEvent, TaskLife

_IDS_PER_STATEMENT: Final = 5000
_RANKS: Final = {priority: place for place, priority in enumerate(Priority)}
_encode: Final = msgspec.json.Encoder().encode
_decode_life: Final = msgspec.json.Decoder(TaskLife).decode
_decode_definition: Final = msgspec.json.Decoder(TaskDefinition).decode
_decode_facts: Final = msgspec.json.Decoder(dict[str, Any]).decode
_decode_ids: Final = msgspec.json.Decoder(tuple[str, ...]).decode
_NO_FACTS: Final = b"{}"


@dataclass(slots=True, kw_only=True)
class Record:
    """A task's row in hand. ``life`` is replaced by the unit of work; the rest never changes."""

    id: str
    tenant: str
    group: str
    definition_json: bytes
    life: TaskLife

    @property
    def definition(self) -> TaskDefinition:
        """What was asked for; decoded at every call."""
        return _decode_definition(self.definition_json)

    def task(self) -> Task:
        """The record as the queue shows it."""
        return Task(id=self.id, tenant=self.tenant, group=self.group, definition=self.definition, life=self.life)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks to list; empty fields let everything through."""

    phases: tuple[Phase, ...] = ()
    group: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much of a tenant's work is where; ``pending`` is counted up to a bound."""

    tenant: str
    pending: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """A line of a story before it has its number."""

    task_id: str
    tenant: str
    at_s: float
    kind: str
    text: str
    run: int | None
    worker: str
    facts: dict[str, Any] = field(default_factory=dict)


_RECORD: Final = (tasks.c.id, tasks.c.tenant, tasks.c.group_id, tasks.c.definition, tasks.c.life)
_INSERT: Final = ManyRows(tasks.insert(), tasks.c.keys())
_INSERT_EDGE: Final = ManyRows(dependencies.insert(), dependencies.c.keys())
_INSERT_EVENT: Final = ManyRows(task_events.insert(), [name for name in task_events.c.keys() if name != "seq"])
_INSERT_ARTIFACT: Final = ManyRows(artifacts.insert(), artifacts.c.keys())
_SAVED: Final = ("phase", "due_s", "worker_id", "life")
_SAVE: Final = ManyRows(
    tasks.update()
    .where(tasks.c.id == sa.bindparam("b_id"))
    .values({name: sa.bindparam(f"b_{name}") for name in _SAVED}),
    ["b_id", *(f"b_{name}" for name in _SAVED)],
)
_BY_ID: Final = sa.select(*_RECORD).where(tasks.c.id.in_(sa.bindparam("ids", expanding=True))).order_by(tasks.c.id)
_LOAD: Final = Query(_BY_ID, lists=["ids"])
_LOAD_LOCKED: Final = Query(_BY_ID.with_for_update(), lists=["ids"])
_PHASES: Final = sa.select(tasks.c.id, tasks.c.phase).where(
    tasks.c.id.in_(sa.bindparam("ids", expanding=True)), tasks.c.tenant == sa.bindparam("tenant")
)
_PHASES_SHARED: Final = _PHASES.order_by(tasks.c.id).with_for_update(read=True)
_PENDING: Final = Query(
    sa.select(*_RECORD)
    .where(
        tasks.c.tenant == sa.bindparam("tenant"),
        tasks.c.phase == Phase.PENDING.value,
        tasks.c.runtime.in_(sa.bindparam("runtimes", expanding=True)),
    )
    .order_by(tasks.c.rank, tasks.c.created_s, tasks.c.id)
    .limit(sa.bindparam("count"))
    .with_for_update(skip_locked=True),
    lists=["runtimes"],
)
_DUE: Final = Query(
    sa.select(*_RECORD)
    .where(tasks.c.due_s <= sa.bindparam("now_s"))
    .order_by(tasks.c.due_s)
    .limit(sa.bindparam("count"))
    .with_for_update(skip_locked=True)
)
_NEXT_DUE: Final = Query(sa.select(sa.func.min(tasks.c.due_s)))
_OF_WORKER: Final = sa.select(*_RECORD).where(tasks.c.worker_id == sa.bindparam("worker")).order_by(tasks.c.id)
_HELD: Final = Query(_OF_WORKER)
_HELD_LOCKED: Final = Query(_OF_WORKER.with_for_update())
_GROUP_LIVE: Final = (
    sa.select(*_RECORD)
    .where(
        tasks.c.tenant == sa.bindparam("tenant"),
        tasks.c.group_id == sa.bindparam("group"),
        tasks.c.phase.in_([phase.value for phase in Phase if not phase.final]),
    )
    .order_by(tasks.c.id)
    .limit(sa.bindparam("count"))
    .with_for_update()
)
_COUNT_WAITING: Final = Query(
    sa.select(sa.func.count()).select_from(
        sa.select(sa.literal(1))
        .where(
            tasks.c.tenant == sa.bindparam("tenant"),
            tasks.c.phase.in_([Phase.UNSCHEDULED.value, Phase.PENDING.value]),
        )
        .limit(sa.bindparam("bound"))
        .subquery()
    )
)
_SUBMISSION: Final = Query(
    sa.select(idempotency_keys.c.request, idempotency_keys.c.task_ids).where(
        idempotency_keys.c.tenant == sa.bindparam("tenant"), idempotency_keys.c.key == sa.bindparam("key")
    )
)
_KEEP_SUBMISSION: Final = ManyRows(idempotency_keys.insert(), idempotency_keys.c.keys())
_ANY_DEPENDENT: Final = Query(
    sa.select(dependencies.c.task_id).where(dependencies.c.needs_id.in_(sa.bindparam("ids", expanding=True))).limit(1),
    lists=["ids"],
)
_MARK_DEPENDENTS: Final = (
    tasks.update()
    .where(
        tasks.c.phase == Phase.UNSCHEDULED.value,
        tasks.c.id.in_(
            sa.select(dependencies.c.task_id).where(dependencies.c.needs_id.in_(sa.bindparam("ids", expanding=True)))
        ),
    )
    .values(due_s=sa.bindparam("b_now_s"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """What one transaction writes: new tasks, changed tasks, lines of stories, artifacts of runs."""

    new: Sequence[Record] = ()
    changed: Sequence[Record] = ()
    events: Sequence[NewEvent] = ()
    artifacts: Sequence[tuple[Record, int, Sequence[Artifact]]] = ()


async def write(connection: AsyncConnection, writes: Writes) -> None:
    """Write all of it at once. Raises Conflict (through the database) for a new id that exists."""
    edges = [
        {"task_id": record.id, "needs_id": needed} for record in writes.new for needed in record.definition.dependencies
    ]
    produced = [_artifact_row(record, run, artifact) for record, run, some in writes.artifacts for artifact in some]
    await execute_batches(
        connection,
        [
            (_INSERT, [_new_row(record) for record in writes.new]),
            (_INSERT_EDGE, edges),
            (_SAVE, [_changed_row(record) for record in writes.changed]),
            (_INSERT_EVENT, [_event_row(event) for event in writes.events]),
            (_INSERT_ARTIFACT, produced),
        ],
    )


async def load(connection: AsyncConnection, ids: Collection[str], *, locked: bool) -> dict[str, Record]:
    """The tasks with these ids that exist, of any tenant."""
    found: dict[str, Record] = {}
    statement = _LOAD_LOCKED if locked else _LOAD
    for some in _slices(sorted(set(ids))):
        found.update((row[0], _record(row)) for row in await statement.rows(connection, {"ids": some}))
    return found


async def phases(
    connection: AsyncConnection, tenant: str, ids: Collection[str], *, shared: bool = False
) -> dict[str, Phase]:
    """The phases of those ids that exist in the tenant; ``shared`` keeps them from changing until the commit."""
    statement = _PHASES_SHARED if shared else _PHASES
    found: dict[str, Phase] = {}
    for some in _slices(sorted(set(ids))):
        rows = await connection.execute(statement, {"ids": some, "tenant": tenant})
        found.update((row.id, Phase(row.phase)) for row in rows)
    return found


async def pending(connection: AsyncConnection, tenant: str, count: int, runtimes: Sequence[str]) -> list[Record]:
    """The next ``count`` pending tasks of a tenant that a worker with these runtimes can run; locked."""
    values = {"tenant": tenant, "count": count, "runtimes": ["", *runtimes]}
    return [_record(row) for row in await _PENDING.rows(connection, values)]


async def loads(
    connection: AsyncConnection, tenants: Sequence[str], *, bound: int, runtimes: Sequence[str]
) -> list[Load]:
    """What each tenant has pending for a worker with these runtimes (up to ``bound``), and running."""
    answers: list[Load] = []
    values: dict[str, Any]
    for some in _slices(tenants, 100):
        values = {f"tenant_{place}": tenant for place, tenant in enumerate(some)}
        values |= {"bound": bound, "runtimes": ["", *runtimes]}
        for tenant, waiting, running in await _loads_of(len(some)).rows(connection, values):
            answers.append(Load(tenant=tenant, pending=waiting, running=running))
    return answers


async def due(connection: AsyncConnection, now_s: float, count: int) -> list[Record]:
    """Tasks for which the clock matters now; locked, those that another scheduler holds left out."""
    return [_record(row) for row in await _DUE.rows(connection, {"now_s": now_s, "count": count})]


async def next_due_s(connection: AsyncConnection) -> float | None:
    """The first instant at which the clock matters to any task."""
    ((instant,),) = await _NEXT_DUE.rows(connection, {})
    return None if instant is None else float(instant)


async def held(connection: AsyncConnection, worker: str, *, locked: bool) -> list[Record]:
    """Tasks whose current run the worker holds, or whose aborted run it must kill."""
    held_by = _HELD_LOCKED if locked else _HELD
    return [_record(row) for row in await held_by.rows(connection, {"worker": worker})]


async def live_of_group(connection: AsyncConnection, tenant: str, group: str, count: int) -> list[Record]:
    """Up to ``count`` tasks of the group that are not final; locked."""
    values = {"tenant": tenant, "group": group, "count": count}
    return [_record(row) for row in await connection.execute(_GROUP_LIVE, values)]


async def mark_dependents(connection: AsyncConnection, ids: Sequence[str], now_s: float) -> bool:
    """Make tasks that wait for one of ``ids`` due; True when there are any."""
    if not await _ANY_DEPENDENT.rows(connection, {"ids": ids}):
        return False  # nearly always, and much cheaper to find out
    answer = await connection.execute(_MARK_DEPENDENTS, {"ids": ids, "b_now_s": now_s})
    return answer.rowcount > 0


async def forget(connection: AsyncConnection, ids: Sequence[str]) -> None:
    """Remove tasks with their stories, dependencies and artifacts."""
    await connection.execute(tasks.delete().where(tasks.c.id.in_(ids)))


async def story(
    connection: AsyncConnection, tenant: str, *, task_id: str = "", group: str = "", after: int, count: int
) -> list[TaskEvent]:
    """Lines numbered above ``after`` of a task, of a group, or of the whole tenant; oldest first."""
    statement = sa.select(task_events).where(task_events.c.tenant == tenant, task_events.c.seq > after)
    if task_id:
        statement = statement.where(task_events.c.task_id == task_id)
    if group:
        members = sa.select(tasks.c.id).where(tasks.c.tenant == tenant, tasks.c.group_id == group)
        statement = statement.where(task_events.c.task_id.in_(members))
    rows = await connection.execute(statement.order_by(task_events.c.seq).limit(count))
    return [
        TaskEvent(
            seq=row.seq,
            task_id=row.task_id,
            at_s=row.at_s,
            kind=row.kind,
            text=row.text,
            run=row.run,
            worker=row.worker_id,
            facts=_decode_facts(row.facts),
        )
        for row in rows
    ]


async def last_seq(connection: AsyncConnection, tenant: str) -> int:
    """The number of the tenant's latest line; 0 when there is none."""
    statement = sa.select(sa.func.max(task_events.c.seq)).where(task_events.c.tenant == tenant)
    return (await connection.execute(statement)).scalar_one() or 0


async def artifacts_of(connection: AsyncConnection, task_id: str, run: int) -> list[Artifact]:
    """The artifacts of one run, by name."""
    statement = sa.select(artifacts).where(artifacts.c.task_id == task_id, artifacts.c.run == run)
    return [
        Artifact(
            name=row.name,
            kind=ArtifactKind(row.kind),
            digest=row.digest,
            size_bytes=row.size_bytes,
            content_type=row.content_type,
            message=row.message,
            executable=row.executable,
        )
        for row in await connection.execute(statement.order_by(artifacts.c.name))
    ]


async def listed(
    connection: AsyncConnection, tenant: str, chosen: TaskFilter, *, after: str, count: int
) -> list[Record]:
    """Tasks of the tenant, newest first, from below the id ``after`` ("" = from the newest)."""
    statement = sa.select(*_RECORD).where(tasks.c.tenant == tenant)
    if chosen.phases:
        statement = statement.where(tasks.c.phase.in_([phase.value for phase in chosen.phases]))
    if chosen.group:
        statement = statement.where(tasks.c.group_id == chosen.group)
    if chosen.name:
        statement = statement.where(tasks.c.name == chosen.name)
    if after:
        statement = statement.where(tasks.c.id < after)
    rows = await connection.execute(statement.order_by(tasks.c.id.desc()).limit(count))
    return [_record(row) for row in rows]


async def count_waiting(connection: AsyncConnection, tenant: str, *, bound: int) -> int:
    """How many tasks of the tenant are unscheduled or pending, counted up to ``bound``."""
    ((count,),) = await _COUNT_WAITING.rows(connection, {"tenant": tenant, "bound": bound})
    return int(count)


async def count_ahead(connection: AsyncConnection, record: Record) -> int:
    """How many pending tasks of the same tenant are served before this one."""
    rank = _RANKS[record.definition.priority]
    mine = (rank, record.life.created_s, record.id)
    ahead = sa.select(sa.func.count()).where(
        tasks.c.tenant == record.tenant,
        tasks.c.phase == Phase.PENDING.value,
        sa.tuple_(tasks.c.rank, tasks.c.created_s, tasks.c.id) < sa.tuple_(*(sa.literal(value) for value in mine)),
    )
    return int((await connection.execute(ahead)).scalar_one())


async def counts(connection: AsyncConnection) -> dict[str, dict[Phase, int]]:
    """How many tasks each tenant has in each phase. Reads an index to its end: for people, not for decisions."""
    statement = sa.select(tasks.c.tenant, tasks.c.phase, sa.func.count()).group_by(tasks.c.tenant, tasks.c.phase)
    answer: dict[str, dict[Phase, int]] = {}
    for tenant, phase, count in await connection.execute(statement):
        answer.setdefault(tenant, {})[Phase(phase)] = count
    return answer


async def tenants_seen(connection: AsyncConnection) -> set[str]:
    """Tenants that have any task."""
    return set((await connection.execute(sa.select(tasks.c.tenant).distinct())).scalars())


async def find_submission(connection: AsyncConnection, tenant: str, key: str) -> tuple[str, tuple[str, ...]] | None:
    """Digest of the request and ids of the tasks that were submitted under this idempotency key."""
    found = await _SUBMISSION.rows(connection, {"tenant": tenant, "key": key})
    return next(((request, _decode_ids(task_ids)) for request, task_ids in found), None)


async def keep_submission(
    connection: AsyncConnection, tenant: str, key: str, *, request: str, ids: Sequence[str], now_s: float
) -> None:
    """Remember a submission. Raises Conflict (through the database) when another one was quicker."""
    row = {"tenant": tenant, "key": key, "request": request, "task_ids": _encode(ids), "created_s": now_s}
    await execute_batches(connection, [(_KEEP_SUBMISSION, [row])])


async def forget_submissions(connection: AsyncConnection, before_s: float) -> None:
    """Remove idempotency keys older than ``before_s``."""
    await connection.execute(idempotency_keys.delete().where(idempotency_keys.c.created_s < before_s))


@lru_cache(maxsize=64)
def _loads_of(tenants: int) -> Query:
    """One query that counts for so many tenants, ``tenant_0`` and on."""
    return Query(sa.union_all(*(_load_of(f"tenant_{place}") for place in range(tenants))), lists=["runtimes"])


def _load_of(parameter: str) -> sa.Select[Any]:
    tenant = sa.bindparam(parameter, type_=sa.Text)
    of_tenant = tasks.c.tenant == tenant
    feasible = tasks.c.runtime.in_(sa.bindparam("runtimes", expanding=True))
    waiting = (
        sa.select(sa.literal(1))
        .where(of_tenant, tasks.c.phase == Phase.PENDING.value, feasible)
        .limit(sa.bindparam("bound"))
        .subquery()
    )
    running = sa.select(sa.func.count()).where(of_tenant, tasks.c.phase == Phase.RUNNING.value)
    return sa.select(
        tenant.label("tenant"),
        sa.select(sa.func.count()).select_from(waiting).scalar_subquery().label("waiting"),
        running.scalar_subquery().label("running"),
    )


def _new_row(record: Record) -> dict[str, Any]:
    definition, life = record.definition, record.life
    return {
        "id": record.id,
        "tenant": record.tenant,
        "phase": life.phase.value,
        "rank": _RANKS[definition.priority],
        "created_s": life.created_s,
        "group_id": record.group,
        "name": definition.name,
        "runtime": definition.runtime,
        "due_s": due_s(life),
        "worker_id": None,
        "definition": record.definition_json,
        "life": _encode(life),
    }


def _changed_row(record: Record) -> dict[str, Any]:
    life = record.life
    return {
        "b_id": record.id,
        "b_phase": life.phase.value,
        "b_due_s": due_s(life),
        "b_worker_id": life.worker or None,
        "b_life": _encode(life),
    }


def _event_row(event: NewEvent) -> dict[str, Any]:
    return {
        "task_id": event.task_id,
        "tenant": event.tenant,
        "at_s": event.at_s,
        "kind": event.kind,
        "run": event.run,
        "worker_id": event.worker,
        "text": event.text,
        "facts": _encode(event.facts) if event.facts else _NO_FACTS,
    }


def _artifact_row(record: Record, run: int, artifact: Artifact) -> dict[str, Any]:
    return {
        "task_id": record.id,
        "run": run,
        "name": artifact.name,
        "tenant": record.tenant,
        "kind": artifact.kind.value,
        "digest": artifact.digest,
        "size_bytes": artifact.size_bytes,
        "content_type": artifact.content_type,
        "message": artifact.message,
        "executable": artifact.executable,
    }


def _record(row: Sequence[Any]) -> Record:
    """From the columns of ``_RECORD``."""
    task_id, tenant, group, definition, life = row
    return Record(id=task_id, tenant=tenant, group=group, definition_json=bytes(definition), life=_decode_life(life))


def _slices(values: Sequence[str], size: int = _IDS_PER_STATEMENT) -> Iterable[Sequence[str]]:
    return (values[start : start + size] for start in range(0, len(values), size))
