"""The queue: accepts tasks, hands out runs under leases, and hears how they ended.

Everything that is accepted or answered is durable before the answer; what is decided stands in ``tasks.machine``, and
who is served next in ``tasks.fair_share``. Any number of queues may work on one PostgreSQL database at once. Besides
the database a queue holds nothing that matters: signals that save a tick, and how much each tenant was served lately.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest
from corral.kernel.errors import CallerError, Conflict, CorralError, NotFound
from corral.kernel.ids import new_id
from corral.tasks.adapters import sql
from corral.tasks.earlier_artifacts import with_artifacts
from corral.tasks.events import (
    CancelAsked,
    Claimed,
    ClockTicked,
    DependencyResolved,
    Event,
    LogFinished,
    Reclaimed,
    RerunAsked,
    ResolvedReported,
    ReturnedReported,
    StartedReported,
    WorkerLost,
)
from corral.tasks.fair_share import Demand, share
from corral.tasks.limits import QueueLimits
from corral.tasks.log_files import LogKey, SealedLog
from corral.tasks.model import Phase, Resolved, Returned, RunReport, Started, Task, TaskDefinition
from corral.tasks.ports import Claim, RunRef, TenantBook
from corral.tasks.submission import PayloadCheck, RuntimeCheck, Submission, accept, checked, failed_dependency
from corral.tasks.unit import UnitOfWork

T = TypeVar("T")
Work = Callable[[AsyncConnection, UnitOfWork], Awaitable[T]]
KeepOutcome = Callable[[AsyncConnection, sql.Record, Resolved], Awaitable[None]]
"""Keeps what a run of another kind than a command tells, in the transaction of its report; never raises for that."""
Heard = Callable[[RunRef, RunReport], None]
"""Told of a report that was accepted and is durable; must not wait."""
SecretNames = Callable[[Mapping[str, Any]], Collection[str]]
"""The names of the secrets that a payload asks for."""

_GROUP_SLICE: Final = 500
_LATENCIES_KEPT: Final = 1000


def _no_mistakes(payload: Mapping[str, Any]) -> Sequence[str]:
    return ()


def _any_runtime(runtime: str) -> str:
    return ""


def _no_secrets(payload: Mapping[str, Any]) -> Collection[str]:
    return ()


@dataclass(slots=True)
class QueueSignals:
    """Volatile wake-ups; whoever waits for one also looks on its own now and then.

    Attributes:
        pending: a run is pending.
        due: the sweeper has something to do.
        aborts: ``desired_cancels`` of some worker changed.
        changed: some story got longer.
        sweeper_error: why the sweeper's last turn failed; "" when it did not.
        heard: who wants to know of reports that this queue accepted, as soon as they are durable.
    """

    pending: Signal = field(default_factory=Signal)
    due: Signal = field(default_factory=Signal)
    aborts: Signal = field(default_factory=Signal)
    changed: Signal = field(default_factory=Signal)
    sweeper_error: str = ""
    heard: list[Heard] = field(default_factory=list)

    def announce(self, unit: UnitOfWork) -> None:
        """Wake whom a committed unit concerns."""
        if unit.claimers:
            self.pending.notify()
        if unit.dependents:
            self.due.notify()
        if unit.aborts:
            self.aborts.notify()
        if unit.changed:
            self.changed.notify()


class Queue:
    """See the module. ``signals`` are for those who push news on; ``waited_s`` are the latest claims' waits.

    ``shared``: other queues may work on the same database, so that a claim which waits also looks on its own.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tenants: TenantBook,
        limits: QueueLimits | None = None,
        *,
        check_payload: PayloadCheck = _no_mistakes,
        check_runtime: RuntimeCheck = _any_runtime,
        secret_names: SecretNames = _no_secrets,
        keep_outcome: KeepOutcome | None = None,
        shared: bool = True,
        make_id: Callable[[str, float], str] = lambda prefix, now_s: new_id(prefix, now_s=now_s),
    ) -> None:
        self.limits = limits or QueueLimits()
        self.signals = QueueSignals()
        self.waited_s: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._database = database
        self._clock = clock
        self._tenants = tenants
        self._check_payload = check_payload
        self._check_runtime = check_runtime
        self._secret_names = secret_names
        self._keep_outcome = keep_outcome
        self.shared = shared
        self._make_id = make_id
        self._served: Mapping[str, float] = {}
        self._seen: set[str] | None = None

    # For users.

    async def submit(
        self,
        tenant: str,
        definitions: Sequence[TaskDefinition],
        *,
        ids: Sequence[str] | None = None,
        idempotency_key: str = "",
    ) -> list[Task]:
        """Accept all of ``definitions`` or none; a task may depend on one before it in the same call (with ``ids``).

        Repeating a call with the same ``ids``, or the same ``idempotency_key``, changes nothing and gives the same
        tasks as they stand now.

        Raises:
            InvalidSpec: ``mistakes`` lists all of them.
            Conflict: the ids or the key are taken by other tasks.
            QueueFull: the tenant has its bound of waiting tasks.
            NotFound: the key's tasks are forgotten.
        """
        encoded = checked(
            definitions,
            ids,
            limits=self.limits,
            check_payload=self._check_payload,
            check_runtime=self._check_runtime,
        )
        now_s = self._clock.now_s()
        chosen = list(ids) if ids is not None else [self._make_id("task", now_s) for _ in definitions]
        request = str(Digest.of(b"\n".join(encoded))) if idempotency_key else ""

        async def work(connection: AsyncConnection, unit: UnitOfWork) -> list[Task]:
            if idempotency_key:
                found = await sql.find_submission(connection, tenant, idempotency_key)
                if found is not None:
                    return await _submitted_before(connection, found, request, idempotency_key)
                await sql.keep_submission(connection, tenant, idempotency_key, request=request, ids=chosen, now_s=now_s)
            submission = Submission(
                tenant=tenant,
                definitions=definitions,
                encoded=encoded,
                ids=chosen,
                fresh=ids is None,
                max_pending=self._tenants.terms(tenant).max_pending,
            )
            return await accept(connection, unit, submission)

        answer = await self._write(work)
        if self._seen is not None:
            self._seen.add(tenant)
        return answer

    async def cancel(self, tenant: str, task_id: str, *, actor: str = "a user") -> Task:
        """Resolve the task as canceled now, and tell the worker. Canceling twice changes nothing.

        Raises: NotFound; Conflict when it ended otherwise.
        """
        return await self._change(tenant, task_id, CancelAsked(actor))

    async def cancel_group(self, tenant: str, group: str, *, actor: str = "a user") -> list[Task]:
        """Cancel every task of the group that is not final; the answer is what was canceled."""
        canceled: list[Task] = []

        async def work(connection: AsyncConnection, unit: UnitOfWork) -> list[Task]:
            records = await sql.live_of_group(connection, tenant, group, _GROUP_SLICE)
            for record in records:
                unit.step(record, CancelAsked(actor))
            return [record.task() for record in records]

        while some := await self._write(work):
            canceled += some
        return canceled

    async def rerun(self, tenant: str, task_id: str, *, actor: str = "a user") -> Task:
        """Run a final task again: a new run, fresh retries, a fresh deadline.

        Dependencies that had let it go are not asked again; the others are looked at as they are now.

        Raises: NotFound; Conflict when it is not final, or a dependency that it requires did not complete.
        """

        async def work(connection: AsyncConnection, unit: UnitOfWork) -> Task:
            record = await self._own(connection, tenant, task_id)
            definition, waited = record.definition, record.life.waits_for
            known = await sql.phases(connection, tenant, waited, shared=True)
            asked = msgspec.structs.replace(definition, dependencies=waited)
            forgotten = next((name for name in waited if name not in known), "")
            event = RerunAsked(
                actor=actor,
                deadline_s=unit.now_s + definition.deadline_s,
                retries=definition.retries,
                waits_for=tuple(name for name in waited if name in known and not known[name].final),
                failed=failed_dependency(asked, known) or forgotten,
            )
            unit.step(record, event)
            return record.task()

        return await self._write(work)

    # For workers.

    async def claim(self, worker: str, slots: int, *, wait_s: float, runtimes: Collection[str] = ()) -> Sequence[Claim]:
        """Up to ``slots`` runs for a worker that offers ``runtimes``; waits up to ``wait_s`` for the first.

        Cancellation: runs may have been claimed; their leases then end.
        """
        count = min(slots, self.limits.claim_runs)
        until_s = self._clock.monotonic_s() + min(wait_s, self.limits.claim_wait_s)
        tick_s = self.limits.claim_tick_s if self.shared else self.limits.claim_wait_s
        while count > 0:
            looked_at = self.signals.pending.count
            claims = await self._write(self._claiming(worker, count, tuple(runtimes)))
            left_s = until_s - self._clock.monotonic_s()
            if claims or left_s <= 0:
                return claims
            if looked_at == self.signals.pending.count:
                await self.signals.pending.wait_notified(within_s=min(left_s, tick_s))
        return []

    async def reclaim(self, worker: str, refs: Collection[RunRef]) -> dict[RunRef, float | None]:
        """Renew leases: the new end of each, or None for one that is lost (abort that run)."""

        async def work(connection: AsyncConnection, unit: UnitOfWork) -> dict[RunRef, float | None]:
            records = await sql.load(connection, {ref.task_id for ref in refs}, locked=True)
            return {ref: self._renewed(unit, records.get(ref.task_id), worker, ref) for ref in refs}

        return await self._write(work) if refs else {}

    async def report(self, worker: str, reports: Sequence[tuple[RunRef, RunReport]]) -> list[CorralError | None]:
        """Hear of runs; for each, in order, None when it is accepted and durable, or why it is not.

        One that is refused (Conflict, NotFound, InvalidSpec) does not hinder the others.
        """

        answers = await self._write(_hearing(worker, reports, self._keep_outcome)) if reports else []
        self._tell_heard(reports, answers)
        return answers

    async def report_and_claim(
        self, worker: str, reports: Sequence[tuple[RunRef, RunReport]], slots: int, *, runtimes: Collection[str] = ()
    ) -> tuple[list[CorralError | None], Sequence[Claim]]:
        """``report`` and a ``claim`` that does not wait, for the price of one: a busy worker always does both."""
        if slots == 0:
            return await self.report(worker, reports), ()
        hearing = _hearing(worker, reports, self._keep_outcome)
        claiming = self._claiming(worker, min(slots, self.limits.claim_runs), tuple(runtimes))

        async def work(
            connection: AsyncConnection, unit: UnitOfWork
        ) -> tuple[list[CorralError | None], Sequence[Claim]]:
            return await hearing(connection, unit), await claiming(connection, unit)

        answers, claims = await self._write(work)
        self._tell_heard(reports, answers)
        return answers, claims

    def _tell_heard(self, reports: Sequence[tuple[RunRef, RunReport]], answers: Sequence[CorralError | None]) -> None:
        if self.signals.heard:
            for (ref, report), refused in zip(reports, answers, strict=True):
                if refused is None:
                    for listener in self.signals.heard:
                        listener(ref, report)

    async def worker_lost(self, worker: str) -> int:
        """End every lease of a worker that is gone; its runs are retried at once. How many there were."""
        return await self._drop(worker, keep=frozenset())

    async def adopt(self, worker: str, refs: Collection[RunRef]) -> dict[RunRef, float | None]:
        """A worker says, as it registers, what it holds: renew that, and end its other leases.

        What it does not name it never got (a lost answer), or lost in a crash of its own.
        """
        renewed = await self.reclaim(worker, refs)
        await self._drop(worker, keep=frozenset(refs))
        return renewed

    async def desired_cancels(self, worker: str) -> list[RunRef]:
        """Runs that the worker may still have and must kill. ``signals.aborts`` tells when to ask again."""
        records = await self._database.read(lambda connection: sql.held(connection, worker, locked=False))
        now_s = self._clock.now_s()
        return [
            RunRef(task_id=record.id, run=abort.run, token=abort.token)
            for record in records
            if (abort := record.life.abort) is not None and abort.worker == worker and now_s < abort.until_s
        ]

    # For the log store.

    async def logs_finished(self, logs: Sequence[tuple[LogKey, SealedLog]]) -> None:
        """Keep where the logs of runs are; a repeat, or a run that is forgotten, changes nothing."""

        async def work(connection: AsyncConnection, unit: UnitOfWork) -> None:
            records = await sql.load(connection, {key.task_id for key, _ in logs}, locked=True)
            for key, sealed in logs:
                record = records.get(key.task_id)
                if record is not None and record.tenant == key.tenant:
                    unit.step(record, LogFinished(key.run, sealed.digest, sealed.log_bytes))

        if logs:
            await self._write(work)

    # For the sweeper.

    async def sweep(self) -> int:
        """Step up to ``limits.sweep_tasks`` tasks for which the clock matters; how many there were."""

        async def work(connection: AsyncConnection, unit: UnitOfWork) -> int:
            records = await sql.due(connection, unit.now_s, self.limits.sweep_tasks)
            waiting = [record for record in records if record.life.phase is Phase.UNSCHEDULED]
            known: dict[str, Phase] = {}
            for tenant in {record.tenant for record in waiting}:
                names = {name for record in waiting if record.tenant == tenant for name in record.life.waits_for}
                known |= await sql.phases(connection, tenant, names)
            for record in records:
                unit.touch(record)
                for name in record.life.waits_for if record.life.phase is Phase.UNSCHEDULED else ():
                    unit.step(record, DependencyResolved(name, known.get(name)))
                unit.step(record, ClockTicked())
            return len(records)

        return await self._write(work)

    async def next_due_s(self) -> float | None:
        """The next instant at which the clock matters to a task, as far as is known now; None when there is none."""
        return await self._database.read(sql.next_due_s)

    async def forget_old_keys(self) -> None:
        """Remove idempotency keys that are past their time, and look which tenants have tasks."""
        before_s = self._clock.now_s() - self.limits.idempotency_s
        await self._database.write(lambda connection: sql.forget_submissions(connection, before_s))
        self._seen = await self._database.read(sql.tenants_seen)

    async def _write(self, work: Work[T]) -> T:
        """Run ``work`` and the writing of its unit in one transaction, then wake whom it concerns."""

        async def transaction(connection: AsyncConnection) -> tuple[T, UnitOfWork]:
            unit = UnitOfWork(self._clock.now_s())
            answer = await work(connection, unit)
            await unit.flush(connection)
            return answer, unit

        answer, unit = await self._database.write(transaction)
        self.signals.announce(unit)
        return answer

    async def _change(self, tenant: str, task_id: str, event: Event) -> Task:
        async def work(connection: AsyncConnection, unit: UnitOfWork) -> Task:
            record = await self._own(connection, tenant, task_id)
            unit.step(record, event)
            return record.task()

        return await self._write(work)

    async def _own(self, connection: AsyncConnection, tenant: str, task_id: str) -> sql.Record:
        record = (await sql.load(connection, [task_id], locked=True)).get(task_id)
        if record is None or record.tenant != tenant:
            raise NotFound(f"there is no task {task_id[:60]}", id=task_id[:60], foreign=record is not None)
        return record

    def _claiming(self, worker: str, count: int, runtimes: Sequence[str]) -> Work[list[Claim]]:
        async def work(connection: AsyncConnection, unit: UnitOfWork) -> list[Claim]:
            claims: list[Claim] = []
            for tenant, granted in (await self._grants(connection, count, runtimes)).items():
                for record in await sql.pending(connection, tenant, granted, runtimes):
                    unit.step(record, Claimed(worker, unit.now_s + self.limits.lease_s))
                    if record.life.phase is Phase.RUNNING:
                        claims.append(await with_artifacts(connection, self._claim(record)))
            return claims

        return work

    async def _grants(self, connection: AsyncConnection, count: int, runtimes: Sequence[str]) -> Mapping[str, int]:
        if self._seen is None:
            self._seen = await sql.tenants_seen(connection)
        names = sorted(self._seen.union(self._tenants.names()))
        demands = []
        for load in await sql.loads(connection, names, bound=count, runtimes=runtimes):
            terms = self._tenants.terms(load.tenant)
            demands.append(
                Demand(
                    tenant=load.tenant,
                    pending=load.pending,
                    running=load.running,
                    weight=terms.weight,
                    max_running=terms.max_running,
                )
            )
        shares = share(demands, count, self._served)
        self._served = shares.served
        return shares.grants

    def _claim(self, record: sql.Record) -> Claim:
        definition, life = record.definition, record.life
        run = life.runs[-1]
        self.waited_s.append(max(0.0, (run.claimed_s or 0.0) - run.created_s))
        names = self._secret_names(definition.payload)
        return Claim(
            ref=RunRef(task_id=record.id, run=len(life.runs) - 1, token=run.token),
            tenant=record.tenant,
            definition=definition,
            lease_until_s=run.lease_until_s or 0.0,
            deadline_s=life.deadline_s,
            secrets=self._tenants.secrets(record.tenant, names) if names else {},
        )

    def _renewed(self, unit: UnitOfWork, record: sql.Record | None, worker: str, ref: RunRef) -> float | None:
        if record is None or not _is_of(record, ref, worker):
            return None
        try:
            unit.step(record, Reclaimed(ref.run, ref.token, unit.now_s + self.limits.lease_s))
        except Conflict:
            return None
        return record.life.runs[-1].lease_until_s

    async def _drop(self, worker: str, *, keep: frozenset[RunRef]) -> int:
        async def work(connection: AsyncConnection, unit: UnitOfWork) -> int:
            dropped = [
                record for record in await sql.held(connection, worker, locked=True) if _current(record) not in keep
            ]
            for record in dropped:
                unit.step(record, WorkerLost(worker))
            return sum(record.life.phase is not Phase.RUNNING for record in dropped)

        return await self._write(work)


async def _submitted_before(
    connection: AsyncConnection, found: tuple[str, tuple[str, ...]], request: str, key: str
) -> list[Task]:
    before, ids = found
    if before != request:
        raise Conflict(f'the idempotency key "{key[:60]}" was used for another submission', key=key[:60])
    records = await sql.load(connection, ids, locked=False)
    if len(records) < len(ids):
        raise NotFound(f'the tasks submitted under the idempotency key "{key[:60]}" are forgotten', key=key[:60])
    return [records[task_id].task() for task_id in ids]


def _hearing(
    worker: str, reports: Sequence[tuple[RunRef, RunReport]], keep_outcome: KeepOutcome | None
) -> Work[list[CorralError | None]]:
    async def work(connection: AsyncConnection, unit: UnitOfWork) -> list[CorralError | None]:
        records = await sql.load(connection, {ref.task_id for ref, _ in reports}, locked=True)
        answers = [_heard(unit, records.get(ref.task_id), worker, ref, report) for ref, report in reports]
        if keep_outcome is not None:
            for (ref, report), refused in zip(reports, answers, strict=True):
                if refused is None and isinstance(report, Resolved) and report.outcome:
                    await keep_outcome(connection, records[ref.task_id], report)
        return answers

    return work


def _heard(
    unit: UnitOfWork, record: sql.Record | None, worker: str, ref: RunRef, report: RunReport
) -> CorralError | None:
    if record is None:
        return NotFound(f"there is no task {ref.task_id[:60]}", id=ref.task_id[:60])
    if not _is_of(record, ref, worker):
        return Conflict(f"run {ref.run} of {ref.task_id} is not held by {worker}", run=ref.run, token=ref.token)
    try:
        if isinstance(report, Started):
            unit.step(record, StartedReported(ref.run, ref.token, report.at_s))
        elif isinstance(report, Returned):
            unit.step(record, ReturnedReported(ref.run, ref.token))
        else:
            unit.step(record, ResolvedReported(ref.run, ref.token, report))
    except CallerError as error:
        return error
    return None


def _is_of(record: sql.Record, ref: RunRef, worker: str) -> bool:
    """Tokens are numbers that anybody can count: the worker must be the one that got it."""
    runs = record.life.runs
    return 0 <= ref.run < len(runs) and runs[ref.run].worker == worker


def _current(record: sql.Record) -> RunRef:
    life = record.life
    return RunRef(task_id=record.id, run=len(life.runs) - 1, token=life.token)
