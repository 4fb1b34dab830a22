"""A queue and a log in memory, for tests of workers: the real ports, a scripted world.

Leases, fencing tokens and idempotence behave as the real queue's; outages are switched on and off by the test.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corral.kernel.clock import Clock
from corral.kernel.errors import Conflict, SchedulerUnavailable
from corral.tasks.model import Artifact, Resolved, Returned, RunReport, TaskDefinition
from corral.tasks.ports import Claim, RunRef


@dataclass(slots=True)
class Held:
    """A run that somebody holds, or held."""

    claim: Claim
    lease_until_s: float
    reports: list[RunReport] = field(default_factory=list)
    lost: bool = False

    @property
    def resolved(self) -> Resolved | None:
        """Its end, when it was told."""
        return next((report for report in self.reports if isinstance(report, Resolved)), None)


class MemoryTaskSource:
    """A ``TaskSource`` in memory.

    Attributes:
        held: every run that was claimed, by task id.
        down: while True, every call raises SchedulerUnavailable.
        slots_asked: the ``slots`` of every claim, in order.
        returned: runs that were given back, in order.
    """

    def __init__(self, clock: Clock, *, lease_s: float = 30.0) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._pending: deque[Claim] = deque()
        self._changed = asyncio.Condition()
        self.held: dict[str, Held] = {}
        self.down = False
        self.slots_asked: list[int] = []
        self.returned: list[RunRef] = []

    async def submit(
        self,
        payload: Mapping[str, Any],
        *,
        tenant: str = "default",
        runtime: str = "",
        secrets: Mapping[str, str] | None = None,
        artifacts: Mapping[str, Artifact] | None = None,
    ) -> RunRef:
        """Put a task at the end of the queue."""
        ref = RunRef(task_id=f"task_{len(self.held) + len(self._pending):026d}", run=0, token=1)
        claim = Claim(
            ref=ref,
            tenant=tenant,
            definition=TaskDefinition(payload=dict(payload), runtime=runtime),
            lease_until_s=0.0,
            deadline_s=self._clock.now_s() + 86_400.0,
            secrets=secrets or {},
            artifacts=artifacts or {},
        )
        async with self._changed:
            self._pending.append(claim)
            self._changed.notify_all()
        return ref

    async def lose(self, ref: RunRef) -> None:
        """Take the lease away: the next reclaim hears None, the next report Conflict."""
        async with self._changed:
            self.held[ref.task_id].lost = True

    async def wait_resolved(self, ref: RunRef, *, within_s: float = 30.0) -> Resolved:
        """The run's end. Raises TimeoutError."""
        async with asyncio.timeout(within_s), self._changed:
            await self._changed.wait_for(lambda: self._resolved(ref) is not None)
        resolved = self._resolved(ref)
        assert resolved is not None
        return resolved

    async def wait_started(self, ref: RunRef, *, within_s: float = 30.0) -> None:
        """Until the command was reported as started. Raises TimeoutError."""
        async with asyncio.timeout(within_s), self._changed:
            await self._changed.wait_for(lambda: ref.task_id in self.held and bool(self.held[ref.task_id].reports))

    async def claim(self, slots: int, *, wait_s: float, ahead: int = 0) -> Sequence[Claim]:
        """See ``TaskSource``."""
        self._check()
        self.slots_asked.append(slots)
        if ahead and self._pending:
            return [self._lease(self._pending.popleft()) for _ in range(min(slots + ahead, len(self._pending)))]
        if slots == 0:
            return []
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._pending)
                return [self._lease(self._pending.popleft()) for _ in range(min(slots, len(self._pending)))]
        except TimeoutError:
            return []

    async def reclaim(self, refs: Sequence[RunRef]) -> Mapping[RunRef, float | None]:
        """See ``TaskSource``."""
        self._check()
        now_s = self._clock.now_s()
        answer: dict[RunRef, float | None] = {}
        for ref in refs:
            held = self.held[ref.task_id]
            if held.lost or held.lease_until_s < now_s:
                held.lost = True
                answer[ref] = None
            else:
                held.lease_until_s = now_s + self._lease_s
                answer[ref] = held.lease_until_s
        return answer

    async def report(self, ref: RunRef, report: RunReport) -> None:
        """See ``TaskSource``."""
        self._check()
        held = self.held[ref.task_id]
        if held.lost or held.claim.ref != ref:
            raise Conflict("the lease of this run is lost")
        if held.resolved is not None and held.resolved != report:
            raise Conflict("another end stands")
        async with self._changed:
            if isinstance(report, Returned):
                self._pending.append(self.held.pop(ref.task_id).claim)
                self.returned.append(ref)
            else:
                held.reports.append(report)
            self._changed.notify_all()

    def _check(self) -> None:
        if self.down:
            raise SchedulerUnavailable("the scheduler is down (by the test)")

    def _resolved(self, ref: RunRef) -> Resolved | None:
        held = self.held.get(ref.task_id)
        return None if held is None else held.resolved

    def _lease(self, claim: Claim) -> Claim:
        until_s = self._clock.now_s() + self._lease_s
        leased = Claim(
            ref=claim.ref,
            tenant=claim.tenant,
            definition=claim.definition,
            lease_until_s=until_s,
            deadline_s=claim.deadline_s,
            secrets=claim.secrets,
            artifacts=claim.artifacts,
        )
        self.held[claim.ref.task_id] = Held(leased, until_s)
        return leased


class MemoryLogSink:
    """A ``LogSink`` in memory.

    Attributes:
        logs: the bytes of every run so far.
        closed: the final size of every log that was ended.
        appends: how many appends there were.
        gate: while cleared, appends wait: a slow store.
    """

    def __init__(self) -> None:
        self.logs: dict[RunRef, bytearray] = {}
        self.closed: dict[RunRef, int] = {}
        self.appends = 0
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()

    def text(self, ref: RunRef) -> str:
        """A log as text."""
        return bytes(self.logs.get(ref, b"")).decode(errors="replace")

    async def append(self, ref: RunRef, offset: int, data: bytes) -> int:
        """See ``LogSink``."""
        self.appends += 1
        await self.gate.wait()
        if self.down:
            raise SchedulerUnavailable("the log store is down (by the test)")
        log = self.logs.setdefault(ref, bytearray())
        if offset > len(log):
            raise Conflict(f"bytes {len(log)} to {offset} are missing")
        log[offset : offset + len(data)] = data
        return len(log)

    async def close(self, ref: RunRef, size_bytes: int) -> None:
        """See ``LogSink``."""
        assert len(self.logs.get(ref, b"")) == size_bytes, "a log was ended before all of it had come"
        self.closed[ref] = size_bytes
