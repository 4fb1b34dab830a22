"""Actions on the scheduler: the durable queue and the action cache, fitted together; they do not know each other."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.actions.adapters.memory_cache import RememberedResults
from corral.actions.adapters.sql_cache import SqlActionCache, store
from corral.actions.errors import MissingBlobs
from corral.actions.limits import ActionLimits
from corral.actions.model import ActionReport, Ended, ExecutionOutcome, Stage, StoredResult
from corral.actions.payload import (
    KEY,
    ActionPayload,
    payload_mistakes,
    read_payload,
    read_report,
    write_payload,
)
from corral.actions.ports import ExecutionRequest, ExecutionState
from corral.actions.service import ActionService
from corral.blobs.content import read_bytes
from corral.blobs.ports import BlobStore
from corral.blobs.turns import Turns
from corral.database import tables
from corral.database.engine import Database
from corral.fleet.model import RunRef
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest
from corral.kernel.errors import (
    CapacityError,
    Conflict,
    CorralError,
    DependencyError,
    InvalidSpec,
    NotFound,
    QuotaExceeded,
)
from corral.tasks.adapters.sql import Record, TaskFilter
from corral.tasks.model import Phase, Priority, Reason, Resolved, RunReport, Started, Task, TaskDefinition
from corral.tasks.payload import validate_payload
from corral.tasks.queue import Queue
from corral.tasks.views import TaskViews

_GROUP: Final = "action:"
_AFTER_GROUP: Final = "action;"  # the next text after all that begin with it
_EARLIER_KEPT: Final = 50_000
_REPORT_BYTES_MAX: Final = 64 * 1024**2
_STAGES: Final = {
    Phase.UNSCHEDULED: Stage.QUEUED,
    Phase.PENDING: Stage.QUEUED,
    Phase.RUNNING: Stage.EXECUTING,
}
_HIGH, _HIGHEST = -1, -10
_NEWS_KEPT: Final = 2000
_log = structlog.get_logger("corral.actions")


def check_payload(payload: Mapping[str, Any]) -> Sequence[str]:
    """All mistakes of a task's payload, whichever kind it is."""
    return payload_mistakes(payload) if KEY in payload else validate_payload(payload)


async def keep_result(clock: Clock, connection: AsyncConnection, record: Record, report: Resolved) -> None:
    """Put what an action left into the cache, in the transaction in which its execution ends.

    Nothing is checked but what the worker says: it has stored everything that it names, and a hit looks again.
    """
    if KEY not in record.definition.payload or report.phase is not Phase.COMPLETED:
        return
    try:
        told, payload = read_report(report.outcome), read_payload(record.definition.payload)
    except InvalidSpec as error:
        _log.warning("an action's report cannot be read", task=record.id, reason=str(error))
        return
    if _is_kept(told):
        now_s = clock.now_s()
        result = StoredResult(
            encoded=told.result,
            named=tuple(Digest.parse(name) for name in told.named),
            stored_s=now_s,
            execution=record.id,
        )
        await store(connection, record.tenant, Digest.parse(payload.digest), result, now_s=now_s)


def _is_kept(report: ActionReport) -> bool:
    return report.ended is Ended.EXITED and not report.do_not_cache and not report.elsewhere


class QueuedExecutions:
    """``actions.ports.Executions`` over the queue of tasks: an execution is a task whose payload is an action."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        views: TaskViews,
        blobs: BlobStore,
        clock: Clock,
        limits: ActionLimits,
        *,
        on_kept: Callable[[str, Digest], None],
    ) -> None:
        """``on_kept`` is told when an action's result may be another one now."""
        self._queue = queue
        self._on_kept = on_kept
        self._views = views
        self._blobs = blobs
        self._clock = clock
        self._limits = limits
        self._news = _News()
        self._earlier = _Earlier(database)
        queue.signals.heard.append(self._news.hear)

    async def submit(self, request: ExecutionRequest) -> ExecutionState:
        digest, news = str(request.action), self._news.count
        payload = ActionPayload(
            digest=digest,
            platform=dict(request.platform),
            timeout_s=request.timeout_s,
            queued_s=self._clock.now_s(),
            do_not_cache=request.do_not_cache,
        )
        (task,) = await self._queue.submit(
            request.tenant,
            [
                TaskDefinition(
                    payload=write_payload(payload),
                    name=f"action {request.action.hash[:12]}",
                    group="" if request.do_not_cache else _GROUP + digest,
                    priority=_priority(request.priority),
                    deadline_s=self._limits.queued_s,
                    expires_s=self._limits.keep_s,
                    runtime=request.runtime,
                )
            ],
        )
        if not request.do_not_cache:
            self._earlier.add(request.tenant, digest)
        return ExecutionState(execution=task.id, action=request.action, stage=Stage.QUEUED, news=news)

    async def find(self, tenant: str, action: Digest) -> ExecutionState | None:
        if not await self._earlier.may_hold(tenant, str(action)):
            return None
        news = self._news.count
        tasks = await self._views.page(tenant, TaskFilter(group=f"{_GROUP}{action}"), limit=1)
        return await self._state_of(tasks[0], news) if tasks else None

    async def state(self, tenant: str, execution: str) -> ExecutionState:
        news = self._news.count
        task = await self._views.get(tenant, execution)
        if KEY not in task.definition.payload:
            raise NotFound(f"there is no execution {execution[:60]}", id=execution[:60])
        return await self._state_of(task, news)

    async def wait_changed(self, tenant: str, state: ExecutionState, *, within_s: float) -> ExecutionState | None:
        report = await self._news.wait(state.execution, after=state.news, within_s=within_s)
        if isinstance(report, Started) and state.stage is Stage.QUEUED:
            return replace(state, stage=Stage.EXECUTING, news=self._news.count)
        if isinstance(report, Resolved) and report.reason is None:
            self._on_kept(tenant, state.action)
            return await self._ended(tenant, replace(state, stage=Stage.COMPLETED), report.phase, report)
        return None

    async def cancel(self, tenant: str, execution: str) -> None:
        try:
            await self._queue.cancel(tenant, execution, actor="whoever asked for the action")
        except Conflict:
            return  # it has ended
        self._news.tell(execution)

    async def _state_of(self, task: Task, news: int) -> ExecutionState:
        payload = read_payload(task.definition.payload)
        run = task.life.runs[-1] if task.life.runs else None
        state = ExecutionState(
            execution=task.id,
            action=Digest.parse(payload.digest),
            stage=_STAGES.get(task.life.phase, Stage.COMPLETED),
            worker=run.worker if run is not None else "",
            news=news,
        )
        if not task.life.phase.final:
            return state
        end = run.end if run is not None else None
        if task.life.phase is Phase.EXCEPTION:
            return await self._failed(task.tenant, state, task.life.reason, end)
        return await self._ended(task.tenant, state, task.life.phase, end)

    async def _failed(
        self, tenant: str, state: ExecutionState, reason: Reason | None, end: Resolved | None
    ) -> ExecutionState:
        report = ActionReport()
        with suppress(CorralError):  # then the reason must do
            report, _ = await self._report(tenant, end)
        message = end.message if end is not None else ""
        error = _error(reason, report, message)
        return replace(state, outcome=ExecutionOutcome(result=None, message=message, error=error))

    async def _ended(self, tenant: str, state: ExecutionState, phase: Phase, end: Resolved | None) -> ExecutionState:
        try:
            report, was_elsewhere = await self._report(tenant, end)
        except CorralError as error:
            return replace(state, outcome=ExecutionOutcome(result=None, error=error))
        if report.ended is None:
            nothing = DependencyError("the worker told nothing of the action")
            return replace(state, outcome=ExecutionOutcome(result=None, error=nothing))
        return replace(
            state,
            outcome=ExecutionOutcome(result=report.result, ended=report.ended, message=report.message),
            named=tuple(Digest.parse(name) for name in report.named),
            cacheable=phase is Phase.COMPLETED and report.ended is Ended.EXITED and not report.do_not_cache,
            kept=not was_elsewhere,
        )

    async def _report(self, tenant: str, end: Resolved | None) -> tuple[ActionReport, bool]:
        """The report, and whether it was too long for the run's own.

        Raises NotFound, StoreUnavailable, InvalidSpec: what the worker told cannot be read any more.
        """
        if end is None or not end.outcome:
            return ActionReport(), False
        report = read_report(end.outcome)
        if not report.elsewhere:
            return report, False
        digest = Digest.parse(report.elsewhere)
        return read_report(await read_bytes(self._blobs, tenant, digest, bytes_max=_REPORT_BYTES_MAX)), True


class _Earlier:
    """Which actions have an execution that is remembered, so that most need no look into the database.

    Only exact where there is one scheduler; with several, every question goes to the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, set[str]] = {}
        self._reading: Turns[str] = Turns()

    def add(self, tenant: str, action: str) -> None:
        """An execution of this action is queued."""
        if tenant in self._known:
            self._known[tenant].add(action)
            if len(self._known[tenant]) > _EARLIER_KEPT:
                del self._known[tenant]  # read anew, without those that are forgotten

    async def may_hold(self, tenant: str, action: str) -> bool:
        """False when there surely is none."""
        if not self._database.url.is_sqlite:
            return True
        async with self._reading.hold(tenant):
            if tenant not in self._known:
                self._known[tenant] = set()  # what is added while we read stays
                self._known[tenant] |= await self._database.read(partial(_actions_of, tenant))
        return action in self._known[tenant]


async def _actions_of(tenant: str, connection: AsyncConnection) -> set[str]:
    group = tables.tasks.c.group_id
    mine = sa.select(group).where(tables.tasks.c.tenant == tenant, group >= _GROUP, group < _AFTER_GROUP)
    return {name.removeprefix(_GROUP) for name in (await connection.execute(mine)).scalars()}


class _News:
    """What the queue told lately of tasks, for those who wait for one of them.

    Only what came since a state was read is news to its reader, so that nothing is missed in between.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last: OrderedDict[str, tuple[int, RunReport | None]] = OrderedDict()
        self._waiting: dict[str, tuple[Signal, int]] = {}

    def hear(self, ref: RunRef, report: RunReport) -> None:
        """For ``QueueSignals.heard``."""
        self.tell(ref.task_id, report)

    def tell(self, task_id: str, report: RunReport | None = None) -> None:
        """Something happened to this task; without a report, whoever waits must look."""
        self.count += 1
        self._last[task_id] = (self.count, report)
        self._last.move_to_end(task_id)
        if len(self._last) > _NEWS_KEPT:
            self._last.popitem(last=False)
        if (waiting := self._waiting.get(task_id)) is not None:
            waiting[0].notify()

    async def wait(self, task_id: str, *, after: int, within_s: float) -> RunReport | None:
        """The report that is news, or None. Cancellation: safe."""
        at, report = self._last.get(task_id, (0, None))
        if at > after:
            return report
        signal, count = self._waiting.get(task_id, (Signal(), 0))
        self._waiting[task_id] = (signal, count + 1)
        try:
            if not await signal.wait_notified(within_s=within_s):
                return None
        finally:
            count = self._waiting[task_id][1] - 1
            if count:
                self._waiting[task_id] = (signal, count)
            else:
                del self._waiting[task_id]
        return self._last.get(task_id, (0, None))[1]


def make_actions(
    database: Database, queue: Queue, views: TaskViews, blobs: BlobStore, clock: Clock, limits: ActionLimits
) -> tuple[ActionService, SqlActionCache]:
    """The service, and the cache that wants cleaning."""
    cache, kept = make_cache(database, blobs, clock, limits)
    executions = QueuedExecutions(database, queue, views, blobs, clock, limits, on_kept=cache.forget)
    return ActionService(cache, executions, blobs, clock, limits), kept


def make_cache(
    database: Database, blobs: BlobStore, clock: Clock, limits: ActionLimits
) -> tuple[RememberedResults, SqlActionCache]:
    """The action cache, and the part of it that wants cleaning."""
    kept = SqlActionCache(database, blobs, clock, limits)
    return RememberedResults(kept, clock, total_bytes=limits.memory_bytes, fresh_s=limits.fresh_s), kept


async def keep_results_clean(cache: SqlActionCache, clock: Clock, every_s: float) -> None:
    """Forget old results now and every ``every_s`` seconds, until it is cancelled."""
    while True:
        try:
            if gone := await cache.clean(now_s=clock.now_s()):
                _log.info("forgot old results of actions", results=gone)
        except (DependencyError, CapacityError) as error:
            _log.warning("cleaning the action cache failed", reason=str(error))
        await asyncio.sleep(every_s)


def _priority(priority: int) -> Priority:
    if priority == 0:
        return Priority.NORMAL
    if priority < 0:
        return Priority.HIGHEST if priority <= _HIGHEST else Priority.HIGH
    return Priority.LOWEST if priority >= -_HIGHEST else Priority.LOW


def _error(reason: Reason | None, report: ActionReport, message: str) -> CorralError:
    if report.missing:
        return MissingBlobs([Digest.parse(name) for name in report.missing])
    match reason:
        case Reason.CANCELED:
            return Conflict("the execution was canceled")
        case Reason.MALFORMED_PAYLOAD:
            return InvalidSpec(message or "the action cannot be executed as it is")
        case Reason.RESOURCE_UNAVAILABLE:
            return QuotaExceeded(message or "the tenant's bytes or the worker's disk are used up")
        case Reason.DEADLINE_EXCEEDED:
            return CapacityError("the execution did not end in time (actions.queued_s), waiting for a worker included")
        case _:
            return DependencyError(message or f"the execution failed: {reason.value if reason else 'for no reason'}")
