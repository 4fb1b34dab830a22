"""What the fleet needs from others: somebody who knows worker tokens, a table, the queue's hooks."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from corral.fleet.machine import WorkerLife
from corral.fleet.model import Registration, RunRef
from corral.kernel.concurrency import Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker as it is kept. Instants are Unix seconds, except inside ``life``."""

    registration: Registration
    life: WorkerLife
    registered_s: float
    seen_s: float


class WorkerTable(Protocol):
    """Where workers are kept over a restart of the scheduler."""

    async def load(self) -> Sequence[WorkerRow]:
        """Every worker that is known. Raises StoreUnavailable."""
        ...

    async def save(self, rows: Sequence[WorkerRow]) -> None:
        """Insert or replace. Raises StoreUnavailable. Cancellation: all or nothing."""
        ...

    async def delete(self, worker_ids: Collection[str]) -> None:
        """Forget. Absent ones are no error."""
        ...


class VerifyWorkerToken(Protocol):
    """Raises Unauthenticated for a token that no worker has; takes the same time for all. Tells refusals itself."""

    def __call__(self, token: str, *, actor: str = "") -> object: ...


OnRefusal = Callable[[str, str, str], None]
"""Hears of every refusal: kind (kebab-case), actor as far as known, reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueHooks:
    """What the fleet tells the queue, and asks it.

    Attributes:
        worker_lost: end every lease of this worker now; repeated until it succeeds.
        desired_cancels: what this worker holds and must abort.
        aborts: notified when ``desired_cancels`` of some worker changed.
    """

    worker_lost: Callable[[str], Awaitable[object]]
    desired_cancels: Callable[[str], Awaitable[Sequence[RunRef]]]
    aborts: Signal
