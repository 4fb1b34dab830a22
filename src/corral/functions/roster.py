"""The instances of all workers, as ordered and as reported, and what they have counted; indexed by revision."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from corral.functions.homes import Settled
from corral.functions.model import InstanceOrder, InstancePhase, InstanceReport, InstanceStats, RevisionKey
from corral.functions.placing import Placed
from corral.functions.routing import Backend

_COUNTERS: Final = ("requests", "errors", "traps", "timeouts", "refused", "cpu_s", "latency_s", "instantiate_s")
_NOTHING: Final[Mapping[str, "Placement"]] = {}


@dataclass(slots=True)
class Placement:
    """An instance on a worker; ``report`` is None until its worker speaks of it."""

    order: InstanceOrder
    worker: str
    ordered_s: float
    report: InstanceReport | None = None

    @property
    def phase(self) -> InstancePhase:
        """As its worker says; starting until then."""
        return self.report.phase if self.report is not None else InstancePhase.STARTING


class Roster:
    """Instances that are wanted (``placed``), and those that leave while their last requests end."""

    def __init__(self) -> None:
        self._placed: dict[str, Placement] = {}
        self._leaving: dict[str, Placement] = {}
        self._by_key: dict[RevisionKey, dict[str, Placement]] = {}
        self._totals: dict[RevisionKey, InstanceStats] = {}

    def place(self, placement: Placement) -> None:
        """It is wanted from now on."""
        self._placed[placement.order.id] = placement
        self._by_key.setdefault(placement.order.key, {})[placement.order.id] = placement

    def remove(self, instance_id: str) -> Placement:
        """It is wanted no more. Its worker may go on reporting it."""
        placement = self._leaving[instance_id] = self._placed.pop(instance_id)
        return placement

    def forget(self, instance_id: str) -> None:
        """It has left; what it counted stays."""
        placement = self._leaving.pop(instance_id)
        key = placement.order.key
        del self._by_key[key][instance_id]
        if not self._by_key[key]:
            del self._by_key[key]
        if placement.report is not None:
            self._totals[key] = added_up([self._totals.get(key, InstanceStats()), placement.report.stats])

    def forget_totals(self, key: RevisionKey) -> None:
        """The revision is gone."""
        self._totals.pop(key, None)

    def find(self, instance_id: str) -> Placement | None:
        """One that is wanted."""
        return self._placed.get(instance_id)

    def find_leaving(self, instance_id: str) -> Placement | None:
        """One that is not wanted any more."""
        return self._leaving.get(instance_id)

    def all(self) -> list[tuple[str, Placement]]:
        """All that are wanted."""
        return list(self._placed.items())

    def of(self, key: RevisionKey) -> Iterator[tuple[str, Placement]]:
        """Those of a revision that are wanted."""
        return ((name, each) for name, each in self._by_key.get(key, _NOTHING).items() if name in self._placed)

    def live_keys(self) -> Iterable[RevisionKey]:
        """Revisions that have an instance, wanted or not."""
        return self._by_key.keys()

    def orders(self, worker: str) -> tuple[InstanceOrder, ...]:
        """What a worker should have."""
        return tuple(each.order for each in self._placed.values() if each.worker == worker)

    def missing(self, worker: str, reported: Collection[str]) -> tuple[list[str], list[str]]:
        """What the worker does not speak of any more: wanted ones that it had, and those that left."""
        wanted = [
            name
            for name, each in self._placed.items()
            if each.worker == worker and each.report is not None and name not in reported
        ]
        left = [name for name, each in self._leaving.items() if each.worker == worker and name not in reported]
        return wanted, left

    def on(self, workers: Collection[str]) -> tuple[list[str], list[str]]:
        """What these workers have: wanted ones, and those that leave."""
        wanted = [name for name, each in self._placed.items() if each.worker in workers]
        return wanted, [name for name, each in self._leaving.items() if each.worker in workers]

    def live(self, key: RevisionKey) -> int:
        """How many are wanted of a revision and start or answer."""
        return sum(each.phase in (InstancePhase.STARTING, InstancePhase.READY) for _, each in self.of(key))

    def ready(self, key: RevisionKey) -> bool:
        """True when one answers."""
        return any(each.phase is InstancePhase.READY for _, each in self.of(key))

    def backends(self, key: RevisionKey) -> tuple[Backend, ...]:
        """Those that answer, for fronts."""
        return tuple(
            Backend(instance=name, worker=each.worker, address=each.report.address)
            for name, each in self.of(key)
            if each.report is not None and each.phase is InstancePhase.READY
        )

    def settled(self) -> list[Settled]:
        """For other schedulers: those that answer and that fronts of other workers can reach."""
        return [
            Settled(key=key, backend=backend)
            for key in self._by_key
            for backend in self.backends(key)
            if "@" in backend.address
        ]

    def as_placed(self) -> list[Placed]:
        """For a plan."""
        return [
            Placed(id=name, key=each.order.key, worker=each.worker, phase=each.phase)
            for name, each in self._placed.items()
        ]

    def total(self, key: RevisionKey) -> InstanceStats:
        """What the revision's instances counted, gone ones too, and what they have now."""
        living = [each.report.stats for each in self._by_key.get(key, _NOTHING).values() if each.report is not None]
        counted = added_up([self._totals.get(key, InstanceStats()), *living])
        return with_present(counted, living) if living else counted


def added_up(stats: Sequence[InstanceStats]) -> InstanceStats:
    """The counters of all, and the largest peak."""
    counters = {name: sum(getattr(each, name) for each in stats) for name in _COUNTERS}
    return InstanceStats(**counters, memory_peak_bytes=max(each.memory_peak_bytes for each in stats))


def with_present(counted: InstanceStats, living: Sequence[InstanceStats]) -> InstanceStats:
    """With what those that live have at this moment; of latencies the worst."""
    return InstanceStats(
        **{name: getattr(counted, name) for name in (*_COUNTERS, "memory_peak_bytes")},
        in_flight=sum(each.in_flight for each in living),
        memory_bytes=sum(each.memory_bytes for each in living),
        latency_p50_s=max(each.latency_p50_s for each in living),
        latency_p99_s=max(each.latency_p99_s for each in living),
    )
