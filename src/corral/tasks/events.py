"""What can happen to a task (events, past tense) and what the shell must then do (effects, imperative).

``tasks.machine`` turns the one into the other; both are plain values, so a history can be written down and replayed.
"""

from typing import Any

import msgspec

from corral.tasks.model import Phase, Resolved, TaskLife


class Fact(msgspec.Struct, frozen=True):
    """Root of the events."""


class DependencyResolved(Fact, frozen=True):
    """A task that this one may wait for came to a final phase, or was forgotten (``phase`` None)."""

    task_id: str
    phase: Phase | None


class Claimed(Fact, frozen=True):
    """A worker took the pending run."""

    worker: str
    lease_until_s: float


class Reclaimed(Fact, frozen=True):
    """The worker renewed its lease."""

    run: int
    token: int
    lease_until_s: float


class StartedReported(Fact, frozen=True):
    """The command was started at ``at_s`` of the worker's clock."""

    run: int
    token: int
    at_s: float


class ReturnedReported(Fact, frozen=True):
    """The worker gives the run back; it has not begun it."""

    run: int
    token: int


class ResolvedReported(Fact, frozen=True):
    """The worker told the run's end."""

    run: int
    token: int
    report: Resolved


class LogFinished(Fact, frozen=True):
    """The log of a run is complete and stored as the blob ``digest``."""

    run: int
    digest: str
    log_bytes: int


class WorkerLost(Fact, frozen=True):
    """The worker is gone, with every lease that it held."""

    worker: str


class ClockTicked(Fact, frozen=True):
    """Look at the clock: leases, deadlines, expiry."""


class CancelAsked(Fact, frozen=True):
    """Somebody wants the task to end now."""

    actor: str


class RerunAsked(Fact, frozen=True):
    """Somebody wants a final task to run again, with fresh retries, until ``deadline_s``.

    ``waits_for`` are the dependencies that are not final yet; ``failed`` one that failed, "" when none did.
    """

    actor: str
    deadline_s: float
    retries: int
    waits_for: tuple[str, ...] = ()
    failed: str = ""


Event = (
    DependencyResolved
    | Claimed
    | Reclaimed
    | StartedReported
    | ReturnedReported
    | ResolvedReported
    | LogFinished
    | WorkerLost
    | ClockTicked
    | CancelAsked
    | RerunAsked
)


class RecordEvent(msgspec.Struct, frozen=True):
    """Add a line to the task's story."""

    kind: str
    text: str
    run: int | None = None
    worker: str = ""
    facts: dict[str, Any] = {}


class WakeClaimers(msgspec.Struct, frozen=True):
    """A run is pending."""


class TellDependents(msgspec.Struct, frozen=True):
    """Tasks that wait for this one must look at it."""


class AbortRun(msgspec.Struct, frozen=True):
    """The worker must kill this run."""

    worker: str
    run: int
    token: int


class WriteAudit(msgspec.Struct, frozen=True):
    """A run that a worker had ended: one row in the ledger. ``report`` None: the queue ended it."""

    run: int
    report: Resolved | None


class AmendAudit(msgspec.Struct, frozen=True):
    """The log of a run that has ended was finished later: add it to the run's row in the ledger."""

    run: int


class ForgetTask(msgspec.Struct, frozen=True):
    """Remove the task and its story; audit rows stay."""


Effect = RecordEvent | WakeClaimers | TellDependents | AbortRun | WriteAudit | AmendAudit | ForgetTask
Outcome = tuple[TaskLife, tuple[Effect, ...]]
