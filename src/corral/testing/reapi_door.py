"""The door for Bazel over stores in memory and a queue that a test turns by hand."""

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import msgspec

from corral.actions.adapters.messages import read_result
from corral.actions.errors import MissingBlobs
from corral.actions.limits import ActionLimits
from corral.actions.model import Ended, ExecutionOutcome, Stage, StoredResult
from corral.actions.ports import ExecutionRequest, ExecutionState
from corral.actions.service import ActionService
from corral.app.reapi import ReapiIdentities
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.ports import BlobStore
from corral.doors.reapi.config import ReapiConfig
from corral.doors.reapi.server import serving
from corral.doors.reapi.services import Services
from corral.kernel.clock import SystemClock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest
from corral.kernel.errors import NotFound
from corral.ledger.model import SecurityEvent
from corral.tenants.model import AccessConfig, AccessRefusal, TenantConfig
from corral.tenants.service import Tenants


class MemoryActionCache:
    """An ``ActionCache`` that looks at outputs and streams, not into trees."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.held: dict[tuple[str, Digest], StoredResult] = {}

    async def get(self, tenant: str, action: Digest) -> StoredResult | None:
        found = self.held.get((tenant, action))
        if found is not None and await self._blobs.find_missing(tenant, _named(found.encoded, action)):
            del self.held[tenant, action]
            return None
        return found

    async def update(self, tenant: str, action: Digest, result: StoredResult) -> None:
        missing = await self._blobs.find_missing(tenant, _named(result.encoded, action))
        if missing:
            raise MissingBlobs(missing, "the result names")
        self.held[tenant, action] = result

    async def remove(self, tenant: str, action: Digest) -> None:
        self.held.pop((tenant, action), None)


class HandTurnedQueue:
    """``Executions`` that go on when a test says so; ``states`` are all that were submitted, by id."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._changed = Signal()
        self.states: dict[str, ExecutionState] = {}
        self.requests: dict[str, ExecutionRequest] = {}
        self.canceled: list[str] = []

    async def submit(self, request: ExecutionRequest) -> ExecutionState:
        execution = f"exec_{next(self._numbers)}"
        self.requests[execution] = request
        self._turn(ExecutionState(execution=execution, action=request.action, stage=Stage.QUEUED))
        return self.states[execution]

    async def find(self, tenant: str, action: Digest) -> ExecutionState | None:
        for execution, request in self.requests.items():
            if (request.tenant, request.action) == (tenant, action) and not request.do_not_cache:
                return self.states[execution]
        return None

    async def state(self, tenant: str, execution: str) -> ExecutionState:
        if execution not in self.states or self.requests[execution].tenant != tenant:
            raise NotFound(f"there is no execution {execution}")
        return self.states[execution]

    async def wait_changed(self, tenant: str, state: ExecutionState, *, within_s: float) -> ExecutionState | None:
        if self.states[state.execution] == state:
            await self._changed.wait_notified(within_s=within_s)
        return self.states[state.execution]

    async def cancel(self, tenant: str, execution: str) -> None:
        await self.state(tenant, execution)
        self.canceled.append(execution)

    def begin(self, execution: str) -> None:
        """A worker took it."""
        old = self.states[execution]
        self._turn(ExecutionState(execution=execution, action=old.action, stage=Stage.EXECUTING, worker="wrk_a"))

    def end(
        self,
        execution: str,
        result: bytes | None,
        *,
        ended: Ended = Ended.EXITED,
        message: str = "",
        error: Exception | None = None,
    ) -> None:
        """The worker is done."""
        outcome = ExecutionOutcome(result=result, ended=ended, message=message, error=error)
        self._turn(
            ExecutionState(
                execution=execution,
                action=self.states[execution].action,
                stage=Stage.COMPLETED,
                worker="wrk_a",
                outcome=outcome,
                cacheable=result is not None and ended is Ended.EXITED,
            )
        )

    async def wait_submitted(self, count: int = 1) -> str:
        """Wait for the ``count``-th execution; its id."""
        while len(self.states) < count:
            await self._changed.wait_notified(within_s=0.05)
        return list(self.states)[count - 1]

    def _turn(self, state: ExecutionState) -> None:
        self.states[state.execution] = state
        self._changed.notify()


@dataclass(slots=True, kw_only=True)
class Door:
    """A door that is open, and what stands behind it.

    Attributes:
        port: of loopback.
        channel: to it, in plain text; None for a door with TLS.
        refusals: what was recorded of those who were turned away.
    """

    port: int
    channel: grpc.aio.Channel
    blobs: MemoryBlobs
    cache: MemoryActionCache
    queue: HandTurnedQueue
    refusals: list[SecurityEvent | AccessRefusal] = field(default_factory=list)


@asynccontextmanager
async def open_door(
    config: ReapiConfig | None = None,
    *,
    tenants: Mapping[str, TenantConfig] | None = None,
    blobs: MemoryBlobs | None = None,
    limits: ActionLimits | None = None,
) -> AsyncIterator[Door]:
    """Serve at a free port of loopback while the block runs."""
    clock = SystemClock()
    refusals: list[SecurityEvent | AccessRefusal] = []
    known = Tenants(tenants or {}, AccessConfig(), refused=refusals.append)
    blobs = blobs or MemoryBlobs()
    cache, queue = MemoryActionCache(blobs), HandTurnedQueue()
    services = Services(
        identities=ReapiIdentities(known, clock, refusals.append),
        blobs=blobs,
        cache=cache,
        clock=clock,
        blob_bytes=1024**3,
        config=msgspec.structs.replace(config or ReapiConfig(), address="127.0.0.1:0"),
    )
    async with (
        serving(services, ActionService(cache, queue, blobs, clock, limits)) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Door(port=port, channel=channel, blobs=blobs, cache=cache, queue=queue, refusals=refusals)


def _named(encoded: bytes, action: Digest) -> list[Digest]:
    result = read_result(encoded, action.function)
    streams = [digest for digest in (result.stdout_digest, result.stderr_digest) if digest is not None]
    found = [each.digest for each in result.files] + [each.tree for each in result.directories] + streams
    return [digest for digest in found if digest.size_bytes]
