"""What users see of the queue: tasks, runs, artifacts, stories, reasons and numbers. Nothing here changes anything."""

from collections.abc import Callable, Collection, Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.kernel.clock import Clock
from corral.kernel.errors import InvalidSpec, NotFound
from corral.tasks.adapters import sql
from corral.tasks.adapters.sql import TaskFilter
from corral.tasks.explain import Situation, explain
from corral.tasks.model import Artifact, Phase, Run, Task, TaskEvent
from corral.tasks.ports import TenantBook, WorkerOffer
from corral.tasks.queue import QueueSignals

PAGE_MAX = 1000

Workers = Callable[[], Sequence[WorkerOffer] | None]
"""Everybody alive now; None when nobody can tell."""


class QueueStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers for people. ``waited_p50_s`` and ``waited_p99_s`` are of the latest claims of this scheduler."""

    phases: dict[str, dict[Phase, int]]
    claims: int
    waited_p50_s: float
    waited_p99_s: float
    sweeper_error: str


class TaskViews:
    """Reads. Every method that names a task raises NotFound for another tenant's, as if it did not exist."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tenants: TenantBook,
        signals: QueueSignals,
        *,
        waited_s: Sequence[float] = (),
        workers: Workers = lambda: None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._tenants = tenants
        self._signals = signals
        self._waited_s = waited_s
        self._workers = workers

    async def get(self, tenant: str, task_id: str) -> Task:
        """One task. Raises: NotFound."""
        return (await self._read(tenant, task_id)).task()

    async def page(
        self, tenant: str, chosen: TaskFilter | None = None, *, after: str = "", limit: int = 100
    ) -> list[Task]:
        """Tasks, newest first; ``after`` is the last id of the page before. Raises: InvalidSpec for an absurd limit."""
        count = _page(limit)
        records = await self._database.read(
            lambda connection: sql.listed(connection, tenant, chosen or TaskFilter(), after=after, count=count)
        )
        return [record.task() for record in records]

    async def runs(self, tenant: str, task_id: str) -> Sequence[Run]:
        """The runs of a task, by number. Raises: NotFound."""
        return (await self._read(tenant, task_id)).life.runs

    async def tasks_named(self, ids: Collection[str]) -> dict[str, Task]:
        """Those of the tasks, of any tenant, that are there; for upkeep, not for users."""
        found = await self._database.read(lambda connection: sql.load(connection, ids, locked=False))
        return {task_id: record.task() for task_id, record in found.items()}

    async def artifacts(self, tenant: str, task_id: str, run: int | None = None) -> list[Artifact]:
        """Artifacts of a run (None: of the last that ended by a report). Raises: NotFound."""
        runs = (await self._read(tenant, task_id)).life.runs
        if run is None:
            ended = [number for number, each in enumerate(runs) if each.end is not None]
            if not ended:
                return []
            run = ended[-1]
        elif not 0 <= run < len(runs):
            raise NotFound(f"{task_id} has no run {run}; it has {len(runs)}", run=run)
        number = run
        return await self._database.read(lambda connection: sql.artifacts_of(connection, task_id, number))

    async def story(self, tenant: str, task_id: str) -> list[TaskEvent]:
        """The life of a task, oldest first. Raises: NotFound."""
        await self._read(tenant, task_id)
        lines: list[TaskEvent] = []
        while some := await self.events(
            tenant, task_id=task_id, after_seq=lines[-1].seq if lines else 0, limit=PAGE_MAX
        ):
            lines += some
        return lines

    async def events(
        self, tenant: str, *, after_seq: int, task_id: str = "", group: str = "", limit: int = PAGE_MAX
    ) -> list[TaskEvent]:
        """Lines numbered above ``after_seq`` of a task, of a group, or of the whole tenant.

        Of one task none is ever missed. Over several tasks on PostgreSQL, numbers become visible in the order of the
        commits: a reader that must not miss one goes back a little.
        """
        count = _page(limit)
        return await self._database.read(
            lambda connection: sql.story(connection, tenant, task_id=task_id, group=group, after=after_seq, count=count)
        )

    async def last_seq(self, tenant: str) -> int:
        """The number of the tenant's latest line; 0 when there is none."""
        return await self._database.read(lambda connection: sql.last_seq(connection, tenant))

    async def wait_changed(self, *, within_s: float) -> bool:
        """Wait until some story got longer here; another scheduler's changes are not seen. Cancellation: safe."""
        return await self._signals.changed.wait_notified(within_s=within_s)

    async def why(self, tenant: str, task_id: str) -> list[str]:
        """Sentences that say why the task is where it is, the decisive one first. Raises: NotFound."""

        async def look(connection: AsyncConnection) -> Situation:
            record = await _own(connection, tenant, task_id)
            life = record.life
            waits = await sql.phases(connection, tenant, life.waits_for)
            ahead = await sql.count_ahead(connection, record) if life.phase is Phase.PENDING else 0
            running = (await sql.loads(connection, [tenant], bound=1, runtimes=()))[0].running
            return Situation(
                task=record.task(),
                now_s=self._clock.now_s(),
                dependencies=waits,
                ahead=ahead,
                running=running,
                terms=self._tenants.terms(tenant),
                workers=self._workers(),
            )

        return explain(await self._database.read(look))

    async def statistics(self) -> QueueStatistics:
        """Tasks by tenant and phase, and how long claims waited lately."""
        phases = await self._database.read(sql.counts)
        waited = sorted(self._waited_s)
        return QueueStatistics(
            phases=phases,
            claims=len(waited),
            waited_p50_s=_percentile(waited, 0.5),
            waited_p99_s=_percentile(waited, 0.99),
            sweeper_error=self._signals.sweeper_error,
        )

    async def _read(self, tenant: str, task_id: str) -> sql.Record:
        return await self._database.read(lambda connection: _own(connection, tenant, task_id))


async def _own(connection: AsyncConnection, tenant: str, task_id: str) -> sql.Record:
    record = (await sql.load(connection, [task_id], locked=False)).get(task_id)
    if record is None or record.tenant != tenant:
        raise NotFound(f"there is no task {task_id[:60]}", id=task_id[:60], foreign=record is not None)
    return record


def _page(limit: int) -> int:
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidSpec(f"limit: a page has 1 to {PAGE_MAX} entries, not {limit}", field="limit")
    return limit


def _percentile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
