"""What the scheduler remembers of each worker: its life, what it said last, and its stream while it is connected."""

import asyncio
from dataclasses import dataclass, field

from corral.fleet.machine import WorkerLife
from corral.fleet.model import Registration, WorkerPhase, WorkerState
from corral.fleet.ports import WorkerRow
from corral.fleet.sessions import Session
from corral.kernel.concurrency import Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker, for people and doors. Instants are Unix seconds; ``state`` is None before its first heartbeat."""

    registration: Registration
    phase: WorkerPhase
    drain: bool
    registered_s: float
    seen_s: float
    state: WorkerState | None


class Attendance:
    """One connected stream of a worker. ``news`` is set when its desired state should be looked at again."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.current = True
        self.news = asyncio.Event()


@dataclass(slots=True)
class Member:
    """A worker that is known. ``here``: it registered with this scheduler."""

    registration: Registration
    life: WorkerLife
    registered_s: float
    seen_s: float
    here: bool = False
    state: WorkerState | None = None
    attendance: Attendance | None = None
    changed: Signal = field(default_factory=Signal)

    def row(self) -> WorkerRow:
        """For the table."""
        return WorkerRow(
            registration=self.registration, life=self.life, registered_s=self.registered_s, seen_s=self.seen_s
        )

    def view(self) -> Worker:
        """For people and doors."""
        return Worker(
            registration=self.registration,
            phase=self.life.phase,
            drain=self.life.drain_asked,
            registered_s=self.registered_s,
            seen_s=self.seen_s,
            state=self.state,
        )

    def tell(self) -> None:
        """Have its stream look at the desired state again."""
        if self.attendance is not None:
            self.attendance.news.set()

    def end_attendance(self) -> None:
        """Its stream, if there is one, is over."""
        if self.attendance is not None:
            self.attendance.current = False
            self.attendance.news.set()
            self.attendance = None
