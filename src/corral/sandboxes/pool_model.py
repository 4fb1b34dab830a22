"""The nouns of pools: keys, bounds, events (what happened, past tense) and effects (what to do, imperative)."""

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from corral.sandboxes.model import Size


@dataclass(frozen=True, slots=True)
class PoolKey:
    """What makes sandboxes interchangeable. ``root`` as in ``SandboxSpec``: the image's prepared directory, or ""."""

    tenant: str
    root: str = ""
    runtime: str = "bubblewrap"
    size: Size = field(default_factory=Size)
    network: bool = False


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds and habits of the pools. Times in seconds, all others are counts of sandboxes unless named otherwise.

    Attributes:
        min: kept for every pinned key, busy ones included.
        warm: spare idle ones kept for a key that was asked for within ``idle_ttl_s``.
        max: of one key.
        tenant_max: busy ones of one tenant.
        sandboxes_max: of all keys together.
        parked_max: idle ones of all keys together; the oldest leave first.
        starting_max: cold starts at the same time.
        frozen_max: frozen ones of all keys together (of runtimes that can freeze; they take disk and nothing else); the
            one frozen for longest leaves first; 0 freezes none.
        idle_ttl_s: an idle one beyond ``min`` and ``warm`` leaves after this: frozen where that can be, else stopped.
        lifetime_s: from the cold start; neither reuse nor frost resets it, and a busy one is never stopped for it.
        waiting_max: length of the line of those who wait.
        acquire_within_s: how long one waits, unless he says otherwise.
        breaker_failures: so many failed starts in a row open a key's breaker: its callers get the error at once.
        breaker_backoff_s: the first pause of an open breaker; doubles with every further failure.
        breaker_backoff_max_s: the longest pause.
    """

    min: int = 0
    warm: int = 2
    max: int = 64
    tenant_max: int = 64
    sandboxes_max: int = 128
    parked_max: int = 32
    frozen_max: int = 16
    starting_max: int = 8
    idle_ttl_s: float = 300.0
    lifetime_s: float = 3600.0
    waiting_max: int = 1000
    acquire_within_s: float = 60.0
    breaker_failures: int = 3
    breaker_backoff_s: float = 1.0
    breaker_backoff_max_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max", "tenant_max", "sandboxes_max", "starting_max", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("min", "warm", "parked_max", "frozen_max", "waiting_max"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("idle_ttl_s", "lifetime_s", "acquire_within_s", "breaker_backoff_s", "breaker_backoff_max_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds")
        if self.min > self.max:
            raise ValueError("min must not exceed max: a pool cannot keep more than it may have")
        if self.max > self.sandboxes_max:
            raise ValueError("max must not exceed sandboxes_max: one pool cannot hold more than all together")


class Phase(StrEnum):
    """Where an entry is in its life."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RESETTING = "resetting"
    FREEZING = "freezing"
    FROZEN = "frozen"
    STOPPING = "stopping"


class Cold(StrEnum):
    """Why a caller did not get a warm sandbox at once, as the clause after "because"."""

    FIRST = "its pool had not been used before"
    BUSY = "every sandbox of its pool was busy"
    STARTING = "its pool was still starting"
    FROZEN = "its sandbox had been frozen while nobody needed it"
    EXPIRED = "the sandboxes of its pool had been idle or old for too long"
    FULL = "there was no room until another sandbox was given back"


# ---- events (past tense) ----


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody wants a sandbox of ``key``; ``ticket`` is unique and grows, and is the lease's fencing token."""

    ticket: int
    key: PoolKey


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The one with ``ticket`` no longer waits."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Started:
    """The box of ``id`` answers."""

    id: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The box of ``id`` did not start, and left nothing; ``hopeless`` when another try cannot go better."""

    id: str
    cause: Exception
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """The holder of ``ticket`` gave ``id`` back; a stale ticket changes nothing."""

    id: str
    ticket: int
    soiled: bool


@dataclass(frozen=True, slots=True)
class ResetDone:
    """The agent emptied ``id``; anything but clean ends it."""

    id: str
    clean: bool


@dataclass(frozen=True, slots=True)
class Died:
    """The link to ``id`` ended by itself."""

    id: str


@dataclass(frozen=True, slots=True)
class Frozen:
    """``id`` is a snapshot, and nothing else of it is left. One that could not be frozen is ``Stopped``."""

    id: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """Everything that ``id`` owned is freed."""

    id: str


@dataclass(frozen=True, slots=True)
class Pinned:
    """From now on ``min`` (and ``warm``) sandboxes of ``key`` are kept although nobody asks; or no longer."""

    key: PoolKey
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Closed:
    """No more: refuse those who wait, stop everything, busy ones too."""


Event = Asked | GaveUp | Started | StartFailed | Released | ResetDone | Died | Frozen | Stopped | Pinned | Closed

# ---- effects (imperative) ----


@dataclass(frozen=True, slots=True)
class Start:
    """Start a box, or go on from the frozen one that ``thaw`` names; answer with Started or StartFailed.

    A snapshot is used once: whatever comes of it, it is gone.
    """

    id: str
    key: PoolKey
    thaw: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a box (or give up starting it); answer with Stopped."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class Freeze:
    """Make a snapshot of a box, which ends it; answer with Frozen, or with Stopped when that did not work."""

    id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the snapshot of ``id``; no answer is waited for."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class Reset:
    """Empty a box; answer with ResetDone."""

    id: str


@dataclass(frozen=True, slots=True)
class HandOut:
    """Give ``id`` to the holder of ``ticket``; ``cold`` is why it was not there at once, None when it was."""

    ticket: int
    id: str
    cold: Cold | None
    reused: bool


class RefusalKind(StrEnum):
    """Why somebody gets nothing."""

    LINE_FULL = "line-full"
    CLOSED = "closed"
    START_FAILED = "start-failed"


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the holder of ``ticket`` that he gets nothing; ``cause`` is the failure of the start, if that is why."""

    ticket: int
    kind: RefusalKind
    cause: Exception | None = None


Effect = Start | Stop | Freeze | Forget | Reset | HandOut | Refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCount:
    """One key's numbers at this moment."""

    key: PoolKey
    idle: int
    busy: int
    starting: int
    resetting: int
    freezing: int
    frozen: int
    stopping: int
    waiting: int
    breaker_open: bool
