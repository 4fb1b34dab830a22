"""Which instances should be on which worker; pure.

``plan`` compares what is wanted with what is placed; it is made anew at every look, so a lost message costs one tick.
Carrying out a plan leaves nothing to plan.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from corral.functions.model import EngineCapacity, InstancePhase, RevisionKey, RevisionSpec

_LIVE: Final = (InstancePhase.STARTING, InstancePhase.READY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker that hosts: ``open`` when it takes new instances, ``leaving`` when those it has must be replaced."""

    worker: str
    capacity: EngineCapacity
    open: bool = True
    leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An instance that was ordered, with what its worker says of it."""

    id: str
    key: RevisionKey
    worker: str
    phase: InstancePhase = InstancePhase.STARTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """A revision that should have ``count`` instances, of which ``spare`` are there for later only."""

    key: RevisionKey
    spec: RevisionSpec
    count: int
    spare: int = 0
    not_before_s: float = 0.0
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Place:
    """Start an instance there."""

    key: RevisionKey
    worker: str


@dataclass(frozen=True, slots=True)
class Unmet:
    """So many could not be placed, and why."""

    key: RevisionKey
    count: int
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now."""

    place: tuple[Place, ...] = ()
    remove: tuple[str, ...] = ()
    unmet: tuple[Unmet, ...] = ()


def plan(seats: Sequence[Seat], placed: Collection[Placed], wants: Sequence[Want], *, now_s: float) -> Plan:
    """Make it so. What is needed comes before spares, and on a full fleet takes their places."""
    table = _Table(seats, placed)
    wanted = {want.key: want for want in wants}
    remove = [each.id for each in placed if each.key not in wanted]
    table.remove(remove)
    for want in wants:
        remove += table.trim(want)
    place: list[Place] = []
    unmet: dict[RevisionKey, Unmet] = {}
    due = [want for want in wants if now_s >= want.not_before_s]
    for want, count in [*((want, want.count - want.spare) for want in due), *((want, want.count) for want in due)]:
        while (missing := count - len(table.staying(want.key))) > 0:
            worker = table.choose(want)
            if worker is None and (victim := table.victim(want, wanted)) is not None:
                remove.append(victim)
                table.remove([victim])
                worker = table.choose(want)
            if worker is None:
                unmet[want.key] = Unmet(want.key, missing, table.why_not(want))
                break
            place.append(Place(want.key, worker))
            table.add(want, worker)
    return Plan(tuple(place), tuple(remove), tuple(unmet.values()))


class _Table:
    """The fleet while a plan is made."""

    def __init__(self, seats: Sequence[Seat], placed: Iterable[Placed]) -> None:
        self._seats = {seat.worker: seat for seat in seats}
        self._placed = {each.id: each for each in placed if each.worker in self._seats}
        self._by_key: dict[RevisionKey, dict[str, Placed]] = {}
        self._count: Counter[str] = Counter()
        self._numbers = itertools.count()
        for each in self._placed.values():
            self._enter(each)

    def _enter(self, each: Placed) -> None:
        self._by_key.setdefault(each.key, {})[each.id] = each
        self._count[each.worker] += 1

    def remove(self, ids: Iterable[str]) -> None:
        """They are gone."""
        for instance_id in ids:
            gone = self._placed.pop(instance_id, None)
            if gone is not None:
                del self._by_key[gone.key][instance_id]
                self._count[gone.worker] -= 1

    def add(self, want: Want, worker: str) -> None:
        """One more is there."""
        name = f"planned {next(self._numbers)}"
        self._placed[name] = new = Placed(id=name, key=want.key, worker=worker)
        self._enter(new)

    def staying(self, key: RevisionKey) -> list[Placed]:
        """Its live instances on workers that are not being emptied."""
        return [each for each in self._of(key) if each.phase in _LIVE and not self._seats[each.worker].leaving]

    def trim(self, want: Want) -> list[str]:
        """Remove what is too much: first what starts, then from the fullest worker; and what has been replaced."""
        staying = self.staying(want.key)
        surplus = sorted(
            staying, key=lambda each: (each.phase is InstancePhase.READY, -self._fullness(each.worker), each.id)
        )[: max(0, len(staying) - want.count)]
        gone = [each.id for each in surplus]
        ready = sum(each.phase is InstancePhase.READY for each in staying if each.id not in gone)
        if ready >= want.count:
            gone += [each.id for each in self._of(want.key) if self._seats[each.worker].leaving]
        self.remove(gone)
        return gone

    def choose(self, want: Want) -> str | None:
        """The worker for one more: few of its kind first, then the emptiest."""
        fit = [seat.worker for seat in self._seats.values() if not self._obstacle(seat, want)]
        beside = Counter(each.worker for each in self._of(want.key))
        return min(
            fit,
            key=lambda worker: (worker in want.avoid, beside[worker], self._fullness(worker), worker),
            default=None,
        )

    def victim(self, want: Want, wanted: Mapping[RevisionKey, Want]) -> str | None:
        """An instance that its revision does not need now, on a worker that would do for ``want``."""
        if want.count - want.spare <= len(self.staying(want.key)):
            return None  # a spare takes no place from a spare
        for key, instances in self._by_key.items():
            other = wanted.get(key)
            if other is None or key == want.key or len(self.staying(key)) <= other.count - other.spare:
                continue
            for each in instances.values():
                seat = self._seats[each.worker]
                if not self._unable(seat, want):
                    return each.id
        return None

    def why_not(self, want: Want) -> str:
        """One sentence."""
        open_seats = [seat for seat in self._seats.values() if seat.open]
        if not open_seats:
            return "no worker that hosts functions is connected"
        return "; ".join(sorted({f"{seat.worker}: {self._obstacle(seat, want)}" for seat in open_seats})[:3])

    def _of(self, key: RevisionKey) -> Iterable[Placed]:
        return self._by_key.get(key, {}).values()

    def _fullness(self, worker: str) -> float:
        return self._count[worker] / max(1, self._seats[worker].capacity.instances)

    def _obstacle(self, seat: Seat, want: Want) -> str:
        if not (why := self._unable(seat, want)) and self._count[seat.worker] >= seat.capacity.instances:
            return f"has its {seat.capacity.instances} instances already"
        return why

    @staticmethod
    def _unable(seat: Seat, want: Want) -> str:
        """Why it could not even if it were empty. Memory is taken by requests, not by instances: one must fit."""
        if not seat.open:
            return "is being emptied" if seat.leaving else "is not connected"
        if not seat.capacity.engine:
            return seat.capacity.trouble or "has no engine"
        if want.spec.kind not in seat.capacity.kinds:
            return f"cannot run {want.spec.kind.value}"
        if 0 < seat.capacity.memory_bytes < want.spec.limits.memory_bytes:
            return "has too little memory for one request"
        if seat.capacity.instances < 1:
            return "takes no instances"
        return ""
