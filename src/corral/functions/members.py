"""The workers that host functions: who is connected, and what each said last. Holds no decision."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from corral.functions.model import FunctionsOrders, FunctionsReport, RevisionKey, RevisionSpec
from corral.functions.placing import Seat
from corral.functions.routing import RoutingTable


class Attendance:
    """One connected stream of a worker. ``news`` is set when there may be something to tell it."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.current = True
        self.news = asyncio.Event()
        self.told_orders: FunctionsOrders | None = None
        self.told_routes: RoutingTable | None = None

    def end(self) -> None:
        """A newer stream of the same worker takes its place."""
        self.current = False
        self.news.set()


@dataclass(slots=True)
class _Member:
    report: FunctionsReport = field(default_factory=FunctionsReport)
    attendance: Attendance | None = None
    lost_s: float = 0.0
    heard: bool = False

    @property
    def attended(self) -> bool:
        """Its stream is open, and it has said what is."""
        return self.attendance is not None and self.heard


class Members:
    """See the module."""

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}

    # Streams.

    def attend(self, worker: str) -> Attendance:
        """A stream was opened; an older one of the same worker ends."""
        member = self._members.setdefault(worker, _Member())
        if member.attendance is not None:
            member.attendance.end()
        member.attendance = Attendance(worker)
        return member.attendance

    def heard(self, attendance: Attendance, report: FunctionsReport) -> tuple[FunctionsReport, bool] | None:
        """What it said before, and whether this is the first report of its stream; None from a stream that is over."""
        member = self._members.get(attendance.worker)
        if member is None or member.attendance is not attendance:
            return None
        before, first = member.report, not member.heard
        member.report, member.heard = report, True
        return before, first

    def stream_lost(self, attendance: Attendance, now_s: float) -> bool:
        """The stream ended, in whatever way; False for an older one, which changes nothing."""
        member = self._members.get(attendance.worker)
        if member is None or member.attendance is not attendance:
            return False
        member.attendance, member.lost_s, member.heard = None, now_s, False
        return True

    def forget_lost(self, before_s: float) -> set[str]:
        """Workers whose stream ended before then are members no more; which."""
        lost = {
            name for name, member in self._members.items() if member.attendance is None and member.lost_s <= before_s
        }
        for worker in lost:
            del self._members[worker]
        return lost

    def wake(self, worker: str) -> None:
        """There may be something to tell it."""
        member = self._members.get(worker)
        if member is not None and member.attendance is not None:
            member.attendance.news.set()

    def listening(self) -> Iterator[Attendance]:
        """Streams of workers that have said what is."""
        return (member.attendance for member in self._members.values() if member.attendance and member.heard)

    def has_heard(self, worker: str) -> bool:
        """Whether the worker has said what is, since its stream was opened."""
        return self._members[worker].heard

    # What they said.

    def attended(self) -> Mapping[str, FunctionsReport]:
        """What each connected worker said last."""
        return {name: member.report for name, member in self._members.items() if member.attended}

    def missing(self, expected: Iterable[str]) -> set[str]:
        """Those of them that are not connected."""
        return set(expected) - self.attended().keys()

    def fronts(self) -> list[str]:
        """Where functions can be called."""
        return [report.capacity.front for report in self.attended().values()]

    def why_no_front(self) -> str:
        """Why functions can be called nowhere now, in one sentence; "" when they can be."""
        reports = self.attended()
        if any(report.capacity.front for report in reports.values()):
            return ""
        told = [
            f"{name}: {trouble}"
            for name, report in reports.items()
            if (trouble := report.capacity.front_trouble or report.capacity.trouble)
        ]
        return "; ".join(told[:3]) or "no worker that hosts functions is connected"

    def able(self, spec: RevisionSpec, tried: Collection[str]) -> str | None:
        """The least busy one that can run such a program, and was not tried."""
        able = [
            (len(report.instances), name)
            for name, report in self.attended().items()
            if name not in tried and spec.kind in report.capacity.kinds
        ]
        return min(able)[1] if able else None

    def why_unable(self, spec: RevisionSpec) -> str:
        """Why nobody can run such a program; "" when nobody is connected."""
        told = [
            f"{name}: {report.capacity.trouble or f'cannot run {spec.kind.value}'}"
            for name, report in self.attended().items()
        ]
        return "; ".join(told[:3])

    def seats(self) -> Sequence[Seat]:
        """Where instances may be."""
        return [
            Seat(
                worker=name,
                capacity=member.report.capacity,
                open=member.attended and not member.report.draining,
                leaving=member.report.draining,
            )
            for name, member in self._members.items()
        ]

    def demands(self) -> Counter[RevisionKey]:
        """Requests that wait or run at all fronts, by revision."""
        demands: Counter[RevisionKey] = Counter()
        for member in self._members.values():
            for demand in member.report.demands if member.attendance is not None else ():
                demands[demand.key] += demand.waiting + demand.in_flight
        return demands

    def demand_of(self, key: RevisionKey) -> tuple[int, int]:
        """Of one revision: those that wait, and those that run."""
        found = [each for member in self._members.values() for each in member.report.demands if each.key == key]
        return sum(each.waiting for each in found), sum(each.in_flight for each in found)
