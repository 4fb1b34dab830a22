"""Fits the services to what the REST door asks for: pure maps from their values to the views that clients read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from corral.client.model import (
    ArtifactList,
    AuditPage,
    RunArtifact,
    RunView,
    SecurityEventPage,
    TaskPage,
    TaskView,
    Why,
    WorkerView,
)
from corral.doors.rest.services import Caller
from corral.fleet.members import Worker
from corral.fleet.service import Fleet
from corral.kernel.clock import Clock
from corral.kernel.errors import InvalidSpec
from corral.kernel.ids import is_id
from corral.ledger.model import Page, SecurityEvent
from corral.ledger.service import Ledger
from corral.tasks.adapters.sql import TaskFilter
from corral.tasks.model import Phase, Run, RunUsage, Task, TaskDefinition, TaskEvent
from corral.tasks.ports import TenantTerms, WorkerOffer
from corral.tasks.queue import Queue
from corral.tasks.submission import PayloadCheck
from corral.tasks.views import TaskViews
from corral.tenants.model import AccessRefusal, Principal
from corral.tenants.service import Tenants

_REPEATED_AFTER_S: Final = 3600.0
_ACTORS_KEPT: Final = 1000
_NO_USAGE: Final = RunUsage()


class Identities:
    """``tenants`` as the door asks it, with refusals going to the ledger."""

    def __init__(self, tenants: Tenants, ledger: Ledger, clock: Clock) -> None:
        self._tenants = tenants
        self._ledger = ledger
        self._clock = clock

    def authenticate(self, bearer: str | None, *, remote_is_loopback: bool, request_id: str) -> Principal:
        """Raises Unauthenticated; the tenants have told the ledger why."""
        return self._tenants.authenticate(bearer, remote_is_loopback=remote_is_loopback, request_id=request_id)

    def tokens_needed(self) -> bool:
        """False when callers on loopback need none."""
        return self._tenants.tokens_needed()

    def refused(self, caller: Caller | None, reason: str, request_id: str) -> None:
        """Record that the door said no."""
        self._ledger.record_nowait(
            SecurityEvent(
                at_s=self._clock.now_s(),
                component="rest",
                kind="request-refused",
                reason=reason,
                tenant=caller.tenant if caller else "",
                actor=caller.name if caller else "",
                request_id=request_id,
            )
        )


class AccessRefusals:
    """Tells the ledger who was turned away at the entrance.

    A worker with a wrong token tries again every few seconds: that is one event, and then one an hour.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._told_s: dict[str, float] = {}
        self._untold: Counter[str] = Counter()

    def record(self, refusal: AccessRefusal) -> None:
        """Never waits, never raises."""
        repeats = 0
        if refusal.kind == "worker-token-unknown":
            now_s = self._clock.monotonic_s()
            if now_s < self._told_s.get(refusal.actor, -_REPEATED_AFTER_S) + _REPEATED_AFTER_S:
                self._untold[refusal.actor] += 1
                return
            if len(self._told_s) >= _ACTORS_KEPT:
                self._told_s.clear()
                self._untold.clear()
            self._told_s[refusal.actor] = now_s
            repeats = self._untold.pop(refusal.actor, 0)
        self._ledger.record_nowait(
            SecurityEvent(
                at_s=self._clock.now_s(),
                component="tenants",
                kind=refusal.kind,
                reason=refusal.reason,
                actor=refusal.actor,
                request_id=refusal.request_id,
                facts={"repeats": repeats} if repeats else {},
            )
        )


class TenantTable:
    """The queue's view of the tenants (``tasks.ports.TenantBook``)."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    def names(self) -> Sequence[str]:
        """The configured tenants."""
        return tuple(self._tenants.names())

    def terms(self, tenant: str) -> TenantTerms:
        """The defaults for a tenant that is not configured any more."""
        if tenant not in self._tenants.names():
            return TenantTerms()
        found = self._tenants.get(tenant)
        return TenantTerms(weight=found.weight, max_pending=found.max_pending, max_running=found.max_running)

    def secrets(self, tenant: str, names: Any) -> Mapping[str, str]:
        """Those of the named secrets that the tenant has."""
        return self._tenants.secrets(tenant, names)


class TaskDesk:
    """The queue as users see it."""

    def __init__(self, queue: Queue, views: TaskViews, payload_mistakes: PayloadCheck) -> None:
        self._queue = queue
        self._views = views
        self._payload_mistakes = payload_mistakes

    def payload_mistakes(self, payload: Mapping[str, Any]) -> Sequence[str]:
        """As sentences."""
        return self._payload_mistakes(payload)

    async def submit(
        self, caller: Caller, definitions: Sequence[TaskDefinition], *, ids: Sequence[str], idempotency_key: str
    ) -> Sequence[TaskView]:
        """Accept all or none."""
        tasks = await self._queue.submit(
            _tenant_of(caller), definitions, ids=ids or None, idempotency_key=idempotency_key
        )
        return [task_view(task) for task in tasks]

    async def get(self, tenant: str, task_id: str) -> TaskView:
        """One task."""
        return task_view(await self._views.get(tenant, task_id))

    async def page(self, tenant: str, *, phase: str, group: str, name: str, limit: int, after: str) -> TaskPage:
        """A page, and the cursor of the next one when this one is full."""
        if after and not is_id(after, "task"):
            raise _no_cursor(after)
        chosen = TaskFilter(phases=(Phase(phase),) if phase else (), group=group, name=name)
        tasks = await self._views.page(tenant, chosen, after=after, limit=limit)
        full = len(tasks) == limit
        return TaskPage(tasks=tuple(task_view(task) for task in tasks), next=tasks[-1].id if full else "")

    async def cancel(self, caller: Caller, task_id: str) -> TaskView:
        """Resolve it as canceled."""
        return task_view(await self._queue.cancel(_tenant_of(caller), task_id, actor=caller.name))

    async def cancel_group(self, caller: Caller, group: str) -> Sequence[TaskView]:
        """Cancel what is not final."""
        tasks = await self._queue.cancel_group(_tenant_of(caller), group, actor=caller.name)
        return [task_view(task) for task in tasks]

    async def rerun(self, caller: Caller, task_id: str) -> TaskView:
        """A new run."""
        return task_view(await self._queue.rerun(_tenant_of(caller), task_id, actor=caller.name))

    async def story(self, tenant: str, task_id: str) -> Sequence[TaskEvent]:
        """Oldest first."""
        return await self._views.story(tenant, task_id)

    async def why(self, tenant: str, task_id: str) -> Why:
        """Sentences, with the phase they explain."""
        task = await self._views.get(tenant, task_id)
        reasons = tuple(await self._views.why(tenant, task_id))
        return Why(task_id=task_id, phase=task.life.phase, reasons=reasons)

    async def artifacts(self, tenant: str, task_id: str, run: int | None) -> ArtifactList:
        """Of one run, or of the last that ended by a report."""
        chosen = run
        if chosen is None:
            runs = await self._views.runs(tenant, task_id)
            chosen = max((number for number, each in enumerate(runs) if each.end is not None), default=None)
            if chosen is None:
                return ArtifactList(artifacts=())
        found = await self._views.artifacts(tenant, task_id, chosen)
        return ArtifactList(artifacts=tuple(RunArtifact(run=chosen, artifact=each) for each in found))

    async def events(self, tenant: str, *, after_seq: int, task_id: str, group: str, limit: int) -> Sequence[TaskEvent]:
        """Lines of stories."""
        return await self._views.events(tenant, after_seq=after_seq, task_id=task_id, group=group, limit=limit)

    async def last_seq(self, tenant: str) -> int:
        """Where the stream of events ends now."""
        return await self._views.last_seq(tenant)

    async def wait_changed(self, *, within_s: float) -> None:
        """A change by another scheduler is noticed after a second."""
        await self._views.wait_changed(within_s=min(within_s, 1.0))


class FleetDesk:
    """The fleet as operators see it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def workers(self) -> Sequence[WorkerView]:
        """All that are known."""
        return [worker_view(worker) for worker in self._fleet.list_workers()]

    async def drain(self, caller: Caller, worker_id: str, *, drain: bool) -> WorkerView:
        """Drain it or take it back."""
        del caller
        changed = await (self._fleet.drain(worker_id) if drain else self._fleet.undrain(worker_id))
        return worker_view(changed)

    def offers(self) -> Sequence[WorkerOffer]:
        """What live workers offer, for ``why``."""
        return [
            WorkerOffer(
                worker=worker.registration.worker_id,
                runtimes=worker.registration.runtimes,
                slots=worker.registration.capacity.slots,
                slots_free=worker.state.slots_free if worker.state else worker.registration.capacity.slots,
                draining=worker.drain,
            )
            for worker in self._fleet.list_workers()
            if worker.phase.value in ("ready", "draining", "drained")
        ]


class LedgerDesk:
    """What the ledger holds."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def audit(self, tenant: str, *, task_id: str, limit: int, after: str) -> AuditPage:
        """Newest first; of one task all runs, which also works after the task was forgotten.

        An administrator who belongs to no tenant sees the rows of all.
        """
        if task_id:
            rows = await self._ledger.runs_of_task(tenant or None, task_id)
            return AuditPage(rows=tuple(msgspec.to_builtins(row) for row in reversed(rows)))
        entries = await self._ledger.audit_page(tenant or None, Page(limit=limit, before=_cursor(after)))
        following = str(entries[-1].seq) if len(entries) == limit else ""
        return AuditPage(rows=tuple(msgspec.to_builtins(each.row) for each in entries), next=following)

    async def security_events(self, *, limit: int, after: str) -> SecurityEventPage:
        """Of all tenants."""
        entries = await self._ledger.security_page(None, Page(limit=limit, before=_cursor(after)))
        following = str(entries[-1].seq) if len(entries) == limit else ""
        return SecurityEventPage(events=tuple(msgspec.to_builtins(each.event) for each in entries), next=following)


def task_view(task: Task) -> TaskView:
    """A task as clients see it."""
    life = task.life
    return TaskView(
        id=task.id,
        tenant=task.tenant,
        phase=life.phase,
        reason=life.reason,
        name=task.definition.name,
        group=task.group,
        created_s=life.created_s,
        deadline_s=life.deadline_s,
        expires_s=life.expires_s,
        retries_left=life.retries_left,
        unmet=life.waits_for,
        runs=tuple(run_view(number, run) for number, run in enumerate(life.runs)),
        definition=task.definition,
    )


def run_view(number: int, run: Run) -> RunView:
    """A run as clients see it."""
    end = run.end
    return RunView(
        run=number,
        phase=run.phase,
        reason=run.reason,
        created_because=run.created.value,
        worker=run.worker,
        created_s=run.created_s,
        claimed_s=run.claimed_s,
        started_s=run.started_s,
        resolved_s=run.resolved_s,
        exit_status=end.exit_status if end else None,
        signal=end.signal if end else None,
        end=end.end if end else "",
        message=end.message if end else "",
        log=run.log,
        log_bytes=run.log_bytes or (end.log_bytes if end else 0),
        usage=end.usage if end else _NO_USAGE,
    )


def worker_view(worker: Worker) -> WorkerView:
    """A worker as clients see it."""
    registration, state = worker.registration, worker.state
    return WorkerView(
        id=registration.worker_id,
        state=worker.phase.value,
        address=registration.address,
        version=registration.version,
        slots=registration.capacity.slots,
        slots_free=state.slots_free if state else 0,
        runs=tuple(f"{ref.task_id}/{ref.run}" for ref in state.runs) if state else (),
        runtimes=registration.runtimes,
        images=state.images if state else registration.images,
        labels=registration.labels,
        load=state.load if state else 0.0,
        memory_free_bytes=state.memory_free_bytes if state else 0,
        disk_free_bytes=state.disk_free_bytes if state else 0,
        registered_s=worker.registered_s,
        last_seen_s=worker.seen_s,
        certificate_fingerprint=registration.certificate_fingerprint,
        pools=_pools(state.pools_json) if state else None,
    )


def _pools(text: str) -> Any:
    try:
        return msgspec.json.decode(text) if text else None
    except msgspec.DecodeError:
        return text  # a worker of another version; it is only for people


def _tenant_of(caller: Caller) -> str:
    if not caller.tenant:
        raise InvalidSpec("an administrator's token belongs to no tenant; use a tenant's token for tasks")
    return caller.tenant


def _cursor(after: str) -> int | None:
    if not after:
        return None
    if not after.isdigit() or len(after) > 18:
        raise _no_cursor(after)
    return int(after)


def _no_cursor(after: str) -> InvalidSpec:
    return InvalidSpec(f'after: "{after[:50]}" is not a cursor that a listing gave', field="after")
