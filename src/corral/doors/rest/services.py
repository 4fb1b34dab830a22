"""What the REST door stands on: small Protocols that name exactly what it calls, and the bundle of them.

The door decides nothing: every rule lives behind these.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from corral.blobs.ports import BlobStore
from corral.client.action_model import ActionView, ExecutionView
from corral.client.function_model import (
    ChangeAnswer,
    ChangeList,
    DeployAnswer,
    DeployRequest,
    FunctionView,
)
from corral.client.model import ArtifactList, AuditPage, RunView, SecurityEventPage, TaskPage, TaskView, Why, WorkerView
from corral.fleet.routes import Route
from corral.functions.machine import Command
from corral.functions.model import LogLine, Share
from corral.functions.traces import Trace
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.kernel.errors import CapacityError
from corral.tasks.model import TaskDefinition, TaskEvent


@runtime_checkable
class Caller(Protocol):
    """Who asks: a tenant's token, or an administrator."""

    @property
    def tenant(self) -> str: ...

    @property
    def name(self) -> str:
        """For records: who acted."""
        ...

    @property
    def admin(self) -> bool:
        """True when the caller may see and steer the whole fleet."""
        ...

    def require(self, scope: str) -> None:
        """Raises Refused when none of the caller's scopes covers ``scope``, such as ``tasks:write``."""
        ...


class Identities(Protocol):
    """Tokens to callers."""

    def authenticate(self, bearer: str | None, *, remote_is_loopback: bool, request_id: str) -> Caller:
        """Raises Unauthenticated, after recording a security event."""
        ...

    def tokens_needed(self) -> bool:
        """False when callers on loopback need none."""
        ...

    def refused(self, caller: Caller | None, reason: str, request_id: str) -> None:
        """Record a security event: the door said no."""
        ...


class TaskDesk(Protocol):
    """The queue as users see it. Unknown ids and other tenants' ids raise NotFound alike."""

    async def submit(
        self, caller: Caller, definitions: Sequence[TaskDefinition], *, ids: Sequence[str], idempotency_key: str
    ) -> Sequence[TaskView]: ...

    def payload_mistakes(self, payload: Mapping[str, Any]) -> Sequence[str]:
        """What submitting such a payload would be refused for, as sentences."""
        ...

    async def get(self, tenant: str, task_id: str) -> TaskView: ...

    async def page(self, tenant: str, *, phase: str, group: str, name: str, limit: int, after: str) -> TaskPage: ...

    async def cancel(self, caller: Caller, task_id: str) -> TaskView: ...

    async def cancel_group(self, caller: Caller, group: str) -> Sequence[TaskView]: ...

    async def rerun(self, caller: Caller, task_id: str) -> TaskView: ...

    async def story(self, tenant: str, task_id: str) -> Sequence[TaskEvent]: ...

    async def why(self, tenant: str, task_id: str) -> Why: ...

    async def artifacts(self, tenant: str, task_id: str, run: int | None) -> ArtifactList: ...

    async def events(
        self, tenant: str, *, after_seq: int, task_id: str, group: str, limit: int
    ) -> Sequence[TaskEvent]: ...

    async def last_seq(self, tenant: str) -> int: ...

    async def wait_changed(self, *, within_s: float) -> None:
        """Return when some task changed, or after ``within_s``."""
        ...


class ActionDesk(Protocol):
    """The action service as users see it. Unknown ids and other tenants' ids raise NotFound alike."""

    async def execute(
        self, tenant: str, action: Digest, *, skip_cache_lookup: bool, priority: int, wait_s: float
    ) -> ExecutionView: ...

    async def wait(self, tenant: str, execution: str, *, wait_s: float) -> ExecutionView: ...

    async def cancel(self, tenant: str, execution: str) -> None: ...

    async def show(self, tenant: str, action: Digest) -> ActionView: ...


class LogReader(Protocol):
    """The logs of runs; whoever calls has checked the tenant."""

    def read(self, tenant: str, task_id: str, run: RunView, *, offset: int, follow: bool) -> AsyncIterator[bytes]:
        """Bytes from ``offset``, with ``follow`` until the log is complete."""
        ...


class FunctionDesk(Protocol):
    """Functions as users see them. ``expected`` is the version that the caller saw; Conflict when it is another."""

    async def deploy(
        self, caller: Caller, name: str, revision: str, request: DeployRequest, *, expected: int | None
    ) -> DeployAnswer: ...

    async def get(self, tenant: str, name: str) -> FunctionView: ...

    async def list(self, tenant: str) -> "list[FunctionView]": ...

    async def switch(
        self,
        caller: Caller,
        name: str,
        revision: str,
        *,
        on: bool,
        successor: str,
        force: bool,
        expected: int | None,
    ) -> ChangeAnswer: ...

    async def split(
        self, caller: Caller, name: str, shares: Sequence[Share], *, expected: int | None
    ) -> ChangeAnswer: ...

    async def rollback(
        self, caller: Caller, name: str, version: int | None, *, expected: int | None
    ) -> ChangeAnswer: ...

    async def apply(self, caller: Caller, name: str, command: Command, *, expected: int | None) -> ChangeAnswer: ...

    async def history(self, tenant: str, name: str, *, limit: int, before: int) -> ChangeList: ...

    async def logs(
        self, tenant: str, name: str, *, after: int, limit: int, revision: str, request_id: str
    ) -> Sequence[LogLine]: ...

    async def traces(self, tenant: str, name: str, *, limit: int, request_id: str) -> Sequence[Trace]: ...

    async def fetch(self, caller: Caller, url: str) -> Digest:
        """Bring a program into the store. Raises Refused for a URL that the operator does not allow."""
        ...

    def follow(
        self, tenant: str, name: str, *, after: int, revision: str, request_id: str
    ) -> AsyncIterator[Sequence[LogLine]]: ...


class FleetDesk(Protocol):
    """The fleet as operators see it."""

    async def workers(self) -> Sequence[WorkerView]: ...

    async def drain(self, caller: Caller, worker_id: str, *, drain: bool) -> WorkerView: ...


class RouteDesk(Protocol):
    """Workers that clients may dial directly (``fleet.routes.Router``)."""

    def route(self, tenant: str, *, image: str, purpose: str, slots: int, avoid: Sequence[str]) -> Sequence[Route]: ...

    def release(self, tenant: str, route_ids: Sequence[str]) -> None: ...


class LedgerDesk(Protocol):
    """What the ledger holds."""

    async def audit(self, tenant: str, *, task_id: str, limit: int, after: str) -> AuditPage: ...

    async def security_events(self, *, limit: int, after: str) -> SecurityEventPage: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RestLimits:
    """Bounds of the door; see ``scheduler.http_limits`` in the configuration."""

    body_bytes: int = 8 * 1024**2
    blob_bytes: int = 64 * 1024**3
    batch_tasks: int = 1000
    page_rows: int = 1000
    wait_s: float = 30.0
    streams: int = 1000


class OpenStreams:
    """The answers that are still being written, so that a stop can break them off.

    Breaking is right: a reader that sees a broken stream takes it up again elsewhere; one that sees an orderly end
    would believe that the log is complete.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._writers: set[asyncio.Task[Any]] = set()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold one of the bounded places while the body writes. Raises CapacityError when all are taken."""
        if len(self._writers) >= self._limit:
            raise CapacityError(f"{self._limit} streams are open already, the limit of this scheduler")
        writer = asyncio.current_task()
        assert writer is not None  # only coroutines get here
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)

    def check_room(self) -> None:
        """Raises CapacityError now, while an error can still be answered."""
        with self.writing():
            pass

    def break_off(self) -> int:
        """Cancel all; how many."""
        for writer in self._writers:
            writer.cancel()
        return len(self._writers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything the door needs, put together by the composition root."""

    identities: Identities
    tasks: TaskDesk
    actions: ActionDesk
    logs: LogReader
    blobs: BlobStore
    fleet: FleetDesk
    functions: FunctionDesk
    ledger: LedgerDesk
    clock: Clock
    metrics: Callable[[], Awaitable[Mapping[str, float]]]
    limits: RestLimits = field(default_factory=RestLimits)
    streams: OpenStreams = field(default_factory=lambda: OpenStreams(1000))
    routes: RouteDesk | None = None
