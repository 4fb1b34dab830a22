"""A scheduler's actions and their workers in one process and one loop, on a real database: for tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from corral.actions.adapters.messages import read_result, write_result
from corral.actions.limits import ActionLimits
from corral.actions.model import ActionReport, ActionResult, Ended, ExecutionUpdate
from corral.actions.payload import read_payload, write_report
from corral.actions.service import ActionService
from corral.app.actions import check_payload, keep_result, make_actions
from corral.blobs.ports import BlobStore
from corral.database.engine import Database
from corral.kernel.clock import Clock, SystemClock
from corral.kernel.digest import Digest, HashFunction
from corral.tasks.limits import QueueLimits
from corral.tasks.model import Phase, Reason, Resolved, RunReport, Started
from corral.tasks.ports import Claim, RunRef, TenantTerms
from corral.tasks.queue import Queue
from corral.tasks.sweeper import run_sweeper
from corral.tasks.views import TaskViews


class Everybody:
    """A tenant book in which all tenants are alike."""

    def names(self) -> Collection[str]:
        return ("ann", "bob", "tenant0", "tenant1")

    def terms(self, tenant: str) -> TenantTerms:
        return TenantTerms()

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        return {}


@dataclass
class Scheduler:
    """One scheduler's queue and action service; make another on the same database to play a restart."""

    queue: Queue
    views: TaskViews
    service: ActionService

    @classmethod
    def on(
        cls,
        database: Database,
        blobs: BlobStore,
        *,
        clock: Clock | None = None,
        limits: ActionLimits | None = None,
        queue_limits: QueueLimits | None = None,
    ) -> "Scheduler":
        """Over this database and store."""
        clock, book = clock or SystemClock(), Everybody()
        queue = Queue(
            database, clock, book, queue_limits, check_payload=check_payload, keep_outcome=partial(keep_result, clock)
        )
        views = TaskViews(database, clock, book, queue.signals)
        service, _ = make_actions(database, queue, views, blobs, clock, limits or ActionLimits())
        return cls(queue, views, service)

    async def execute(self, tenant: str, action: Digest, **more: Any) -> list[ExecutionUpdate]:
        """All updates to the end."""
        return [update async for update in self.service.execute(tenant, action, **more)]


Perform = Callable[[Claim, Digest], Awaitable[ActionReport]]
"""What a pretended worker does with an action."""


async def succeed(claim: Claim, digest: Digest) -> ActionReport:
    """An action that does nothing, at once."""
    del claim, digest
    return ActionReport(ended=Ended.EXITED, result=write_result(ActionResult(stdout=b"done")))


@dataclass
class PretendedWorker:
    """Claims and reports as a worker does, and pretends to run actions. Attributes: ``performed``, by tenant."""

    name: str = "wrk_pretended"
    slots: int = 4
    perform: Perform = succeed
    performed: dict[str, int] = field(default_factory=dict)

    async def run(self, queue: Queue) -> None:
        """Work for this queue until cancelled."""
        room = asyncio.Semaphore(self.slots)
        async with asyncio.TaskGroup() as group:
            while True:
                await room.acquire()
                free = 1
                while free < self.slots and not room.locked():
                    await room.acquire()
                    free += 1
                claims = await queue.claim(self.name, free, wait_s=60, runtimes=("bubblewrap",))
                for _ in range(free - len(claims)):
                    room.release()
                for claim in claims:
                    group.create_task(self._attempt(queue, claim, room))

    async def perform_one(self, queue: Queue) -> None:
        """Claim one action, and report its end."""
        (claim,) = await queue.claim(self.name, 1, wait_s=10, runtimes=("bubblewrap",))
        await self._attempt(queue, claim, asyncio.Semaphore(0))

    async def _attempt(self, queue: Queue, claim: Claim, room: asyncio.Semaphore) -> None:
        try:
            clock = SystemClock()
            await self._tell(queue, claim.ref, Started(at_s=clock.now_s()))
            digest = Digest.parse(read_payload(claim.definition.payload).digest)
            report = await self.perform(claim, digest)
            self.performed[claim.tenant] = self.performed.get(claim.tenant, 0) + 1
            phase, reason = _end_of(report)
            resolved = Resolved(at_s=clock.now_s(), phase=phase, reason=reason, outcome=write_report(report))
            await self._tell(queue, claim.ref, resolved)
        finally:
            room.release()

    async def _tell(self, queue: Queue, ref: RunRef, report: RunReport) -> Sequence[object]:
        return await queue.report(self.name, [(ref, report)])


def _end_of(report: ActionReport) -> tuple[Phase, Reason | None]:
    if report.elsewhere:
        return Phase.COMPLETED, None
    if report.ended is None:
        return Phase.EXCEPTION, Reason.MALFORMED_PAYLOAD
    exit_code = read_result(report.result, HashFunction.SHA256).exit_code
    return (Phase.COMPLETED if report.ended is Ended.EXITED and not exit_code else Phase.FAILED), None


@asynccontextmanager
async def at_work(scheduler: Scheduler, *workers: PretendedWorker) -> AsyncIterator[None]:
    """In the block the workers work for this scheduler, and its sweeper runs."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(worker.run(scheduler.queue)) for worker in workers]
        running.append(group.create_task(run_sweeper(scheduler.queue, SystemClock())))
        try:
            yield
        finally:
            for task in running:
                task.cancel()
