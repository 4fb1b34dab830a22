"""The queue on a database, with its views, a clock that is turned by hand, and hands to work it."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corral.database.engine import Database
from corral.tasks.limits import QueueLimits
from corral.tasks.model import (
    Phase,
    Resolved,
    RunReport,
    Task,
    TaskDefinition,
)
from corral.tasks.ports import Claim, TenantTerms, WorkerOffer
from corral.tasks.queue import Queue
from corral.tasks.views import TaskViews

ANN, BOB = "wrk_ann", "wrk_bob"
T0 = 1_800_000_000.0
LIMITS = QueueLimits(lease_s=30.0, claim_tick_s=0.2, sweep_every_s=0.05)


@dataclass
class HandClock:
    """Wall time stands still until it is turned; durations are the loop's."""

    wall_s: float = T0

    def now_s(self) -> float:
        return self.wall_s

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class RunningClock(HandClock):
    """Wall time goes with the loop's."""

    def now_s(self) -> float:
        return T0 + self.monotonic_s()


@dataclass
class Book:
    """Tenants with their terms, and one secret each."""

    granted: dict[str, TenantTerms] = field(default_factory=lambda: {"red": TenantTerms(), "blue": TenantTerms()})

    def names(self) -> Collection[str]:
        return self.granted

    def terms(self, tenant: str) -> TenantTerms:
        return self.granted.get(tenant, TenantTerms())

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        return {name: f"{tenant}'s {name}" for name in names}


@dataclass
class Yard:
    """A queue with its views, and hands to work it."""

    database: Database
    clock: HandClock = field(default_factory=HandClock)
    book: Book = field(default_factory=Book)
    workers: Sequence[WorkerOffer] | None = None
    shared: bool = True

    def __post_init__(self) -> None:
        self.queue = Queue(
            self.database,
            self.clock,
            self.book,
            LIMITS,
            check_payload=lambda payload: ["payload.x: unknown"] if "x" in payload else [],
            secret_names=lambda payload: payload.get("secrets", ()),
            shared=self.shared,
        )
        self.views = TaskViews(self.database, self.clock, self.book, self.queue.signals, workers=lambda: self.workers)

    async def submit(self, tenant: str = "red", **fields: Any) -> Task:
        """One task with these fields."""
        fields.setdefault("payload", {})
        return (await self.queue.submit(tenant, [TaskDefinition(**fields)]))[0]

    async def claim(self, worker: str = ANN, slots: int = 1, **fields: Any) -> Sequence[Claim]:
        """What is there at once."""
        return await self.queue.claim(worker, slots, wait_s=0.0, **fields)

    async def report(self, claim: Claim, report: RunReport, worker: str = ANN) -> None:
        """Report; raises what the queue says of it."""
        error = (await self.queue.report(worker, [(claim.ref, report)]))[0]
        if error is not None:
            raise error

    async def run(self, phase: Phase = Phase.COMPLETED) -> str:
        """Carry out the next task; its id."""
        claim = (await self.claim())[0]
        await self.report(claim, Resolved(at_s=self.clock.wall_s, phase=phase, exit_status=0))
        return claim.ref.task_id

    async def sweep_all(self) -> None:
        """Sweep until nothing is due."""
        while await self.queue.sweep() >= LIMITS.sweep_tasks:
            pass

    async def phase(self, task: Task) -> Phase:
        """Where it stands."""
        return (await self.views.get(task.tenant, task.id)).life.phase


async def claim_waits(yard: Yard) -> None:
    """Return when a claim has found nothing and waits."""
    async with asyncio.timeout(20):
        while not yard.queue.signals.pending._waiters:  # noqa: ASYNC110 - nothing tells that somebody began to wait
            await asyncio.sleep(0)
