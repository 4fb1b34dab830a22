"""The ports of tasks, as a worker sees them.

``TaskSource`` is where claims come from: our own queue over gRPC, in memory in tests, or a Taskcluster deployment.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from corral.fleet.model import RunRef
from corral.tasks.model import Artifact, RunReport, TaskDefinition

__all__ = ["Claim", "LogSink", "RunRef", "TaskSource"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run that we may, and must, carry out until ``lease_until_s`` (Unix seconds) unless reclaimed.

    Attributes:
        secrets: values of the tenant's secrets that the payload names (``tasks.payload.secret_names``).
        artifacts: what the payload's inputs of the kind ``artifact`` stand for, by ``ArtifactReference.key``
            (``tasks.payload.artifact_references``); one that does not exist is absent.
    """

    ref: RunRef
    tenant: str
    definition: TaskDefinition
    lease_until_s: float
    deadline_s: float
    secrets: Mapping[str, str]
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)


class TaskSource(Protocol):
    """Where runs come from and where their ends are told."""

    async def claim(self, slots: int, *, wait_s: float, ahead: int = 0) -> Sequence[Claim]:
        """Up to ``slots`` claims; waits up to ``wait_s`` for the first. Every claim returned must be handled.

        Up to ``ahead`` further ones that are there now may come too; it never waits for those.

        Raises: SchedulerUnavailable. Cancellation: a claim may be lost; its lease then expires.
        """
        ...

    async def reclaim(self, refs: Sequence[RunRef]) -> Mapping[RunRef, float | None]:
        """Renew leases: the new ``lease_until_s`` of each, or None for a lease that is lost (abort that run)."""
        ...

    async def report(self, ref: RunRef, report: RunReport) -> None:
        """Tell a run's progress or end, once durable. Raises Conflict when the lease is lost, or another end stands."""
        ...


class LogSink(Protocol):
    """Where a run's log bytes go while it runs."""

    async def append(self, ref: RunRef, offset: int, data: bytes) -> int:
        """Add bytes at ``offset``; returns how many bytes are durable. Repeating changes nothing."""
        ...

    async def close(self, ref: RunRef, size_bytes: int) -> None:
        """No more bytes will come; the log is ``size_bytes`` long."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantTerms:
    """What the queue grants a tenant.

    Attributes:
        weight: its part of the fleet, relative to the other tenants'.
        max_pending: tasks that may wait at once, unscheduled or pending.
        max_running: runs that may be held at once.
    """

    weight: float = 1.0
    max_pending: int = 100_000
    max_running: int = 10_000


class TenantBook(Protocol):
    """What the queue must know of tenants."""

    def names(self) -> Collection[str]:
        """The configured tenants."""
        ...

    def terms(self, tenant: str) -> TenantTerms:
        """The terms of a tenant; the defaults for one that is not configured (any more)."""
        ...

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        """Values of those of the named secrets that the tenant has."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOffer:
    """What a live worker offers to the queue."""

    worker: str
    runtimes: Collection[str]
    slots: int
    slots_free: int
    draining: bool
