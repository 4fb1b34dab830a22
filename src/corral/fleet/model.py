"""The nouns of the fleet: what a worker offers, what it is doing, what it should do.

A *worker* is one node that runs work. Its id outlives its process; every process of it has its own *instance* id,
so that a reconnection can be told from a second worker with the same id.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """One run under one lease. The token grows with every lease of a task; an old one changes nothing."""

    task_id: str
    run: int
    token: int


class WorkerPhase(StrEnum):
    """Where a worker stands."""

    REGISTERED = "registered"
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"
    LOST = "lost"
    EVICTED = "evicted"


class Capacity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker has to give. Zero bytes mean "not told"."""

    slots: int
    cpus: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0


class Registration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker says of itself when it joins.

    Attributes:
        instance: names this process of the worker; new at every start.
        address: where clients may dial it; "" when they may not.
        images: digests of images that are prepared there.
        certificate_fingerprint: SHA-256 of its certificate, lower-case hex; "" without one.
        result_key: the Ed25519 public key that signs results there, hex; "" without one.
    """

    worker_id: str
    instance: str
    capacity: Capacity
    address: str = ""
    runtimes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    certificate_fingerprint: str = ""
    version: str = ""
    labels: dict[str, str] = {}
    result_key: str = ""


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """What is: a worker's heartbeat. ``runs`` is everything that holds a slot; ``load`` is per core; ``executions``
    came through its own door."""

    slots_free: int
    runs: tuple[RunRef, ...] = ()
    images: tuple[str, ...] = ()
    draining: bool = False
    load: float = 0.0
    disk_free_bytes: int = 0
    memory_free_bytes: int = 0
    pools_json: str = ""
    executions: int = 0


class DesiredState(msgspec.Struct, frozen=True, kw_only=True):
    """What should be: take nothing new (``drain``), abort these runs (``cancel``), speak this often.

    ``route_key`` signs the tokens of clients that dial the worker; b"" as long as no route was given.
    """

    heartbeat_s: float
    drain: bool = False
    cancel: tuple[RunRef, ...] = ()
    route_key: bytes = b""


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scheduler's side of the fleet. All in seconds, except where the name says otherwise.

    Attributes:
        heartbeat_s: how often a worker tells its state when nothing changes.
        silent_after_s: a worker that said nothing for so long is evicted.
        reconnect_grace_s: how long after the loss of its stream a worker keeps its leases.
        desired_poll_s: how often desired state is compared without a hint (another scheduler may have changed it).
        lease_s: told to workers, which renew leases at a third of it.
        workers_max: more workers than this are refused.
        forget_after_s: an evicted worker leaves the list after so long.
    """

    heartbeat_s: float = 10.0
    silent_after_s: float = 30.0
    reconnect_grace_s: float = 1.0
    desired_poll_s: float = 5.0
    lease_s: float = 30.0
    workers_max: int = 1000
    forget_after_s: float = 7 * 86_400.0

    def __post_init__(self) -> None:
        if self.heartbeat_s <= 0 or self.reconnect_grace_s < 0 or self.desired_poll_s <= 0:
            raise ValueError("heartbeat_s and desired_poll_s must be above 0, reconnect_grace_s not below 0")
        if self.heartbeat_s * 2 >= self.silent_after_s:
            raise ValueError("heartbeat_s must be under half of silent_after_s: one lost beat must not lose a worker")
