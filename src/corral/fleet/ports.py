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
    """Where all schedulers of a fleet keep its workers. ``life.drain_asked`` has a place of its own in a row."""

    async def load(self) -> Sequence[WorkerRow]:
        """Every worker that is known, by id. Raises StoreUnavailable."""
        ...

    async def join(self, row: WorkerRow) -> WorkerRow | None:
        """Insert or replace the row of a worker that registers; gives the row that was there before.

        The row gets the next ``turn``; a drain that was asked for stands. Raises StoreUnavailable. Cancellation: all
        or nothing.
        """
        ...

    async def save(self, rows: Sequence[WorkerRow]) -> None:
        """Replace those rows whose ``turn`` is still the same; what is said of drain there stands.

        Raises StoreUnavailable. Cancellation: all or nothing.
        """
        ...

    async def ask_drain(self, worker_id: str, *, drain: bool) -> None:
        """Ask for a drain, or lift it, whichever scheduler has the worker. An absent worker is no error."""
        ...

    async def delete(self, worker_ids: Collection[str]) -> None:
        """Forget those that are evicted. Absent ones are no error."""
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
