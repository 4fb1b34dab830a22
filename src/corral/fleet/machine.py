"""The life of a worker, as a pure function; nothing here waits, reads a clock or knows gRPC.

``step(life, event, now_s=…)`` gives the next life and the effects that the shell carries out. Instants are monotonic
seconds of the scheduler's process. The table ``LEGAL`` says which events mean something in which phase; the others
change nothing.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from corral.fleet.model import FleetConfig, WorkerPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLife:
    """What the fleet knows of a worker's life.

    Attributes:
        instance: the process that is registered.
        seen_s: when it said something last.
        attended: its stream is connected.
        lost_s: when the stream was lost; meaningful in phase LOST.
        drain_asked: an operator wants it empty; outlives processes of the worker.
        draining: it says itself that it takes nothing new.
        runs: how many runs it holds, as it says.
        home: the scheduler that it registered with last.
        turn: grows with every registration, at whatever scheduler; who knows an older one speaks of the past.
    """

    worker_id: str
    instance: str
    phase: WorkerPhase
    seen_s: float
    attended: bool = False
    lost_s: float = 0.0
    drain_asked: bool = False
    draining: bool = False
    runs: int = 0
    home: str = ""
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Registered:
    """A process of the worker said what it offers."""

    instance: str


@dataclass(frozen=True, slots=True)
class Attended:
    """The worker said what is."""

    runs: int
    draining: bool


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The stream of the registered process ended."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """An operator wants the worker empty."""


@dataclass(frozen=True, slots=True)
class DrainLifted:
    """An operator wants the worker back."""


@dataclass(frozen=True, slots=True)
class Removed:
    """An operator declares the worker gone."""


Event = Registered | Attended | StreamLost | TimePassed | DrainAsked | DrainLifted | Removed


@dataclass(frozen=True, slots=True)
class ExpireLeases:
    """End every lease of the worker now; its runs start elsewhere."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class PushDesired:
    """What the worker should be has changed: tell it at once."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class RecordWorkerEvent:
    """Keep for people: something happened to the worker. ``kind`` is kebab-case."""

    worker_id: str
    kind: str
    reason: str


Effect = ExpireLeases | PushDesired | RecordWorkerEvent
Step = tuple[WorkerLife, tuple[Effect, ...]]

_HERE: Final = frozenset({WorkerPhase.READY, WorkerPhase.DRAINING, WorkerPhase.DRAINED})
_ALIVE: Final = _HERE | {WorkerPhase.REGISTERED, WorkerPhase.LOST}
_ALL: Final = frozenset(WorkerPhase)
LEGAL: Final[dict[type[Event], frozenset[WorkerPhase]]] = {
    Registered: _ALL,
    Attended: _ALIVE,
    StreamLost: _HERE,
    TimePassed: _ALIVE,
    DrainAsked: _ALL,
    DrainLifted: _ALL,
    Removed: _ALIVE,
}


def joined(worker_id: str, instance: str, *, now_s: float, drain_asked: bool = False) -> WorkerLife:
    """The life of a worker that registers, or that a scheduler finds in its database as it starts."""
    return WorkerLife(
        worker_id=worker_id,
        instance=instance,
        phase=WorkerPhase.REGISTERED,
        seen_s=now_s,
        drain_asked=drain_asked,
    )


def may_join(life: WorkerLife | None, instance: str) -> bool:
    """False when another process with this worker's id is connected right now: ids are not shared."""
    return life is None or life.instance == instance or not life.attended


def step(life: WorkerLife, event: Event, *, now_s: float, config: FleetConfig) -> Step:
    """What follows from ``event``. An event that is not legal in this phase changes nothing."""
    if life.phase not in LEGAL[type(event)]:
        return life, ()
    match event:
        case Registered():
            return _registered(life, event, now_s)
        case Attended():
            return _attended(life, event, now_s)
        case StreamLost():
            return _stream_lost(life, now_s)
        case TimePassed():
            return _time_passed(life, now_s, config)
        case DrainAsked():
            return _drain_turned(life, asked=True)
        case DrainLifted():
            return _drain_turned(life, asked=False)
        case Removed():
            return _evicted(life, "worker-removed", "an operator removed it")
        case _:
            assert_never(event)


def due_s(life: WorkerLife, config: FleetConfig) -> float | None:
    """The next instant at which the clock matters; None when it never does."""
    if life.phase is WorkerPhase.EVICTED:
        return None
    silent_s = life.seen_s + config.silent_after_s
    return min(silent_s, life.lost_s + config.reconnect_grace_s) if life.phase is WorkerPhase.LOST else silent_s


def feasible(life: WorkerLife, *, runtimes: tuple[str, ...], wanted: str) -> bool:
    """True when the worker may take new work that asks for the runtime ``wanted`` ("" = any)."""
    takes_work = life.phase is WorkerPhase.READY and not life.drain_asked and not life.draining
    return takes_work and (wanted == "" or wanted in runtimes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that clients may be sent to.

    Attributes:
        slots: how many executions it takes at once.
        busy: how many hold a slot, or are promised one: what it says, and what it cannot have heard of yet.
        images: that are prepared there.
        warm: it has sandboxes of this tenant and image standing ready.
    """

    worker_id: str
    slots: int
    busy: int = 0
    images: Collection[str] = field(default_factory=frozenset)
    warm: bool = False


_COLD_IMAGE: Final = 100.0
_WARM: Final = 2.0


def place(candidates: Iterable[Candidate], *, image: str, avoid: Collection[str] = ()) -> str | None:
    """The worker that the next execution should go to; None when all are full. Lower scores win.

    The score is the load, as on a worker of the largest size, plus 100 where the image would have to be fetched
    first, minus 2 where a sandbox stands ready: that much, and not more, so that a parallel build spreads. ``avoid``
    are workers that just failed; they come last.
    """
    free = [each for each in candidates if each.slots > each.busy]
    largest = max((each.slots for each in free), default=0)

    def score(each: Candidate) -> tuple[bool, float, str]:
        load = each.busy * largest / each.slots
        cold = _COLD_IMAGE if image and image not in each.images else 0.0
        return each.worker_id in avoid, load + cold - (_WARM if each.warm else 0.0), each.worker_id

    return min(free, key=score).worker_id if free else None


def _registered(life: WorkerLife, event: Registered, now_s: float) -> Step:
    again = joined(life.worker_id, event.instance, now_s=now_s, drain_asked=life.drain_asked)
    again = replace(again, home=life.home, turn=life.turn)
    if event.instance == life.instance and life.phase is not WorkerPhase.EVICTED:
        return replace(again, runs=life.runs), ()
    effects: tuple[Effect, ...] = (RecordWorkerEvent(life.worker_id, "worker-registered", f"process {event.instance}"),)
    if event.instance != life.instance and life.phase is not WorkerPhase.EVICTED:
        effects = (ExpireLeases(life.worker_id), *effects)  # the former process, and all it ran, is gone
    return again, effects


def _attended(life: WorkerLife, event: Attended, now_s: float) -> Step:
    after = replace(life, seen_s=now_s, attended=True, runs=event.runs, draining=event.draining)
    after = replace(after, phase=_phase(after))
    if after.phase is life.phase:
        return after, ()
    return after, (RecordWorkerEvent(life.worker_id, f"worker-{after.phase}", f"was {life.phase}"),)


def _stream_lost(life: WorkerLife, now_s: float) -> Step:
    gone = replace(life, attended=False, lost_s=now_s)
    if life.phase is WorkerPhase.DRAINED:
        return _evicted(gone, "worker-left", "it was drained and closed its stream")
    lost = replace(gone, phase=WorkerPhase.LOST)
    return lost, (RecordWorkerEvent(life.worker_id, "worker-lost", "its stream ended"),)


def _time_passed(life: WorkerLife, now_s: float, config: FleetConfig) -> Step:
    if life.phase is WorkerPhase.LOST and now_s >= life.lost_s + config.reconnect_grace_s:
        return _evicted(life, "worker-evicted", f"did not come back within {config.reconnect_grace_s:g} s")
    if now_s >= life.seen_s + config.silent_after_s:
        return _evicted(life, "worker-evicted", f"said nothing for {config.silent_after_s:g} s")
    return life, ()


def _drain_turned(life: WorkerLife, *, asked: bool) -> Step:
    if life.drain_asked is asked:
        return life, ()
    after = replace(life, drain_asked=asked)
    if life.phase in _HERE:
        after = replace(after, phase=_phase(after))
    kind = "worker-drain-asked" if asked else "worker-drain-lifted"
    return after, (PushDesired(life.worker_id), RecordWorkerEvent(life.worker_id, kind, "an operator asked"))


def _evicted(life: WorkerLife, kind: str, reason: str) -> Step:
    after = replace(life, phase=WorkerPhase.EVICTED, attended=False, runs=0)
    return after, (ExpireLeases(life.worker_id), RecordWorkerEvent(life.worker_id, kind, reason))


def _phase(life: WorkerLife) -> WorkerPhase:
    if not (life.drain_asked or life.draining):
        return WorkerPhase.READY
    return WorkerPhase.DRAINING if life.runs else WorkerPhase.DRAINED
