"""The fleet: who works for this scheduler, what each should do, and who is gone.

``fleet.machine`` decides; this shell keeps lives and sessions in memory, writes what changed to the table, and ends
the leases of workers that are gone. A session lives as long as this process and its worker's registration: after a
restart every worker authenticates again, while its leases stay what they were.

Several schedulers may share one table. Each speaks for the workers that registered with it (their *home*), tells the
table at every heartbeat that they live, and reads there about the others'; a worker whose home has fallen silent is
evicted by whoever notices.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from corral.fleet import machine
from corral.fleet.machine import Effect, Event, ExpireLeases, PushDesired, RecordWorkerEvent, WorkerLife
from corral.fleet.members import Attendance, Member, Worker
from corral.fleet.model import DesiredState, FleetConfig, Registration, WorkerPhase, WorkerState
from corral.fleet.ports import OnRefusal, QueueHooks, VerifyWorkerToken, WorkerRow, WorkerTable
from corral.fleet.sessions import Session, Sessions
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import Conflict, CorralError, InvalidSpec, NotFound, QueueFull, Unauthenticated
from corral.kernel.ids import new_token

_WORKER_ID: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_RETRY_S: Final = 0.2
_IDLE_S: Final = 3600.0
_logger = structlog.get_logger("corral.fleet")


class Fleet:
    """See the module. ``load()`` first, then ``run()`` for as long as the scheduler serves."""

    def __init__(
        self,
        table: WorkerTable,
        clock: Clock,
        hooks: QueueHooks,
        verify: VerifyWorkerToken,
        config: FleetConfig | None = None,
        *,
        scheduler_id: str = "",
        on_refusal: OnRefusal = lambda kind, actor, reason: None,
        make_token: Callable[[], str] = new_token,
    ) -> None:
        self.config = config or FleetConfig()
        self.scheduler_id = scheduler_id
        self.changed = Signal()
        self._table = table
        self._clock = clock
        self._hooks = hooks
        self._verify = verify
        self._on_refusal = on_refusal
        self._members: dict[str, Member] = {}
        self._sessions = Sessions(make_token, most=2 * self.config.workers_max)
        self._unsaved: set[str] = set()
        self._forgotten: set[str] = set()
        self._expiring: set[str] = set()
        self._expire_turn = asyncio.Lock()
        self._table_turn = asyncio.Lock()  # what is read while we write is older than what we know
        self._route_key = b""
        self._work = asyncio.Event()

    async def load(self) -> None:
        """Read the workers that are known; those of a former process of ours have ``silent_after_s`` to come back."""
        await self._look()

    # For workers.

    def authenticate(self, worker_token: str, worker_id: str, instance: str) -> str:
        """Trade a worker token for a session token.

        Raises:
            Unauthenticated: the token is no worker's.
            InvalidSpec: the id could not be a worker's.
            Conflict: another process with this id is connected; try again when it is gone.
        """
        if not _WORKER_ID.fullmatch(worker_id) or not 0 < len(instance) <= 100:
            raise InvalidSpec(f"worker_id: {worker_id[:70]!r} is not 1 to 63 of a-z, 0-9, '_', '.', '-'")
        self._verify(worker_token, actor=worker_id)
        self._check_joinable(worker_id, instance)
        return self._sessions.start(worker_id, instance)

    def session(self, token: str) -> Session:
        """Whose session token this is. Raises Unauthenticated."""
        return self._sessions.of(token)

    async def register(self, session: Session, registration: Registration) -> None:
        """Take a worker into the fleet. Another process that had the id before loses its leases first.

        Raises: Conflict for another worker's session; QueueFull; StoreUnavailable (it must register again).
        """
        if (registration.worker_id, registration.instance) != (session.worker_id, session.instance):
            self._on_refusal("worker-id-mismatch", session.worker_id, f"registers as {registration.worker_id}")
            raise Conflict("the session belongs to another worker")
        self._check_joinable(session.worker_id, session.instance)
        now_s = self._clock.now_s()
        if session.worker_id not in self._members and len(self._members) >= self.config.workers_max:
            raise QueueFull(f"the fleet has its {self.config.workers_max} workers (fleet.workers_max)")
        life = machine.joined(session.worker_id, session.instance, now_s=self._clock.monotonic_s())
        life = replace(life, home=self.scheduler_id)
        row = WorkerRow(registration=registration, life=life, registered_s=now_s, seen_s=now_s)
        before = await self._table.join(row)
        member = self._members.get(session.worker_id)
        if member is None:
            known = before.life if before is not None else life
            member = self._members[session.worker_id] = Member(registration, known, now_s, now_s)
            if before is None:
                self._record(RecordWorkerEvent(session.worker_id, "worker-registered", f"process {session.instance}"))
        if before is not None:
            member.life = replace(member.life, drain_asked=before.life.drain_asked)
            self._step(member, machine.Registered(session.instance))
            if before.life.instance != session.instance and before.life.phase is not WorkerPhase.EVICTED:
                self._expiring.add(session.worker_id)  # the former process, and all it ran, is gone
        turn = before.life.turn + 1 if before is not None else 1
        member.life = replace(member.life, home=self.scheduler_id, turn=turn)
        member.registration, member.registered_s, member.seen_s, member.here = registration, now_s, now_s, True
        self._forgotten.discard(session.worker_id)
        if session.worker_id in self._expiring:
            await self._expire(session.worker_id)  # before it claims anything new

    def attend(self, session: Session) -> Attendance:
        """A stream was opened; an older one of the same process ends. Raises Conflict before :meth:`register`."""
        member = self._member_of(session)
        member.end_attendance()
        member.attendance = Attendance(session)
        return member.attendance

    def heard(self, attendance: Attendance, state: WorkerState) -> None:
        """The worker said what is."""
        member = self._members.get(attendance.session.worker_id)
        if member is None or member.attendance is not attendance:
            return
        member.state = state
        member.seen_s = self._clock.now_s()
        self._step(member, machine.Attended(runs=len(state.runs), draining=state.draining))
        attendance.news.set()

    def stream_lost(self, attendance: Attendance) -> None:
        """The stream ended, in whatever way. That of an older stream changes nothing."""
        member = self._members.get(attendance.session.worker_id)
        if member is not None and member.attendance is attendance:
            member.attendance = None
            self._step(member, machine.StreamLost())

    async def desired(self, worker_id: str) -> DesiredState:
        """What the worker should be. Raises StoreUnavailable."""
        member = self._member(worker_id)
        cancel = tuple(await self._hooks.desired_cancels(worker_id))
        return DesiredState(
            heartbeat_s=self.config.heartbeat_s,
            drain=member.life.drain_asked,
            cancel=cancel,
            route_key=self._route_key,
        )

    async def wait_feasible(self, session: Session, *, within_s: float) -> tuple[str, ...] | None:
        """Wait until the worker may take work; its runtimes, or None when it still may not. Cancellation: safe."""
        until_s = self._clock.monotonic_s() + within_s
        while True:
            member = self._member_of(session)
            runtimes = member.registration.runtimes
            if machine.feasible(member.life, runtimes=runtimes, wanted=""):
                return runtimes
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0:
                return None
            await member.changed.wait_notified(within_s=left_s)

    # For operators.

    def list_workers(self) -> list[Worker]:
        """All workers that are known, by id; evicted ones for ``forget_after_s``."""
        return [self._members[worker_id].view() for worker_id in sorted(self._members)]

    def get(self, worker_id: str) -> Worker:
        """One worker. Raises NotFound."""
        return self._member(worker_id).view()

    async def drain(self, worker_id: str) -> Worker:
        """Let the worker finish what runs and take nothing new; holds over its restarts. Raises NotFound."""
        return await self._turn_drain(worker_id, machine.DrainAsked())

    async def undrain(self, worker_id: str) -> Worker:
        """Let the worker take work again. Raises NotFound."""
        return await self._turn_drain(worker_id, machine.DrainLifted())

    async def remove(self, worker_id: str) -> Worker:
        """Declare the worker gone; its leases end now. A living process of it will come back. Raises NotFound."""
        member = self._member(worker_id)
        self._step(member, machine.Removed())
        await self._table.save([member.row()])
        return self.get(worker_id)

    def feasible_workers(self, runtime: str = "") -> list[str]:
        """Workers that may take new work asking for this runtime ("" = any)."""
        return [
            worker_id
            for worker_id, member in self._members.items()
            if machine.feasible(member.life, runtimes=member.registration.runtimes, wanted=runtime)
        ]

    def dialable(self) -> list[Worker]:
        """Workers of this scheduler that may take new work and that clients may dial."""
        return [
            member.view()
            for member in self._members.values()
            if member.here
            and member.registration.address
            and machine.feasible(member.life, runtimes=member.registration.runtimes, wanted="")
        ]

    def publish_route_key(self, public: bytes) -> None:
        """Tell all workers at once whose tokens they may accept."""
        self._route_key = public
        for member in self._members.values():
            member.tell()

    def statistics(self) -> dict[str, int]:
        """How many workers are in each phase, slots offered by and free on those that are ready."""
        ready = [member for member in self._members.values() if member.life.phase is WorkerPhase.READY]
        return {
            **{
                phase.value: sum(member.life.phase is phase for member in self._members.values())
                for phase in WorkerPhase
            },
            "slots": sum(member.registration.capacity.slots for member in ready),
            "slots_free": sum(member.state.slots_free for member in ready if member.state is not None),
        }

    # Upkeep.

    async def run(self) -> None:
        """Tick, end leases of the lost, keep the table, until cancelled."""
        async with asyncio.TaskGroup() as upkeep:
            upkeep.create_task(self._keep_house(), name="fleet:house")
            upkeep.create_task(self._pass_on_aborts(), name="fleet:aborts")
            upkeep.create_task(self._compare_table(), name="fleet:table")

    async def _pass_on_aborts(self) -> None:
        while True:
            if await self._hooks.aborts.wait_notified(within_s=_IDLE_S):
                for member in self._members.values():
                    member.tell()

    async def _keep_house(self) -> None:
        while True:
            self._work.clear()
            self._tick()
            failed = not await self._settle()
            wait_s = _RETRY_S if failed else self._until_due_s()
            try:
                async with asyncio.timeout(wait_s):
                    await self._work.wait()
            except TimeoutError:
                continue
            if failed:
                await asyncio.sleep(_RETRY_S)

    async def _compare_table(self) -> None:
        """Tell the table who lives here, and learn from it who lives elsewhere."""
        told_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(self.config.desired_poll_s)
            try:
                if self._clock.monotonic_s() >= told_s + self.config.heartbeat_s:
                    told_s = self._clock.monotonic_s()
                    await self._table.save([each.row() for each in self._members.values() if each.attendance])
                await self._look()
            except CorralError as error:
                _logger.warning("workers-not-compared", error=str(error))
            self._work.set()  # what was learned has instants of its own

    async def _look(self) -> None:
        async with self._table_turn:
            self._compare({row.life.worker_id: row for row in await self._table.load()})

    def _compare(self, rows: Mapping[str, WorkerRow]) -> None:
        for worker_id, row in rows.items():
            member = self._members.get(worker_id)
            if worker_id in self._forgotten:
                continue
            if member is None:
                life = self._life_elsewhere(row)
                self._members[worker_id] = Member(row.registration, life, row.registered_s, row.seen_s)
            elif row.life.turn > member.life.turn and row.life.home == self.scheduler_id:
                continue  # it registers here at this moment
            elif row.life.turn > member.life.turn or not member.here:
                self._learn(member, row)
            elif row.life.drain_asked is not member.life.drain_asked:
                asked = row.life.drain_asked
                self._step(member, machine.DrainAsked() if asked else machine.DrainLifted())
        for worker_id, member in list(self._members.items()):
            if worker_id not in rows and not member.here:
                del self._members[worker_id]

    def _learn(self, member: Member, row: WorkerRow) -> None:
        """Take over what the table says of a worker that is not, or not any more, at home here."""
        if row.life.worker_id in self._unsaved and row.life.turn == member.life.turn:
            return  # we know it better: we evicted it
        if member.here:
            member.here, member.state = False, None
            self._expiring.discard(row.life.worker_id)  # its leases are its new home's concern
            self._sessions.end(row.life.worker_id)
            member.end_attendance()
        silent = row.life.turn == member.life.turn and row.seen_s == member.seen_s
        heard_s = member.life.seen_s if silent else self._clock.monotonic_s()
        member.life = replace(self._life_elsewhere(row), seen_s=heard_s)
        member.registration, member.registered_s, member.seen_s = row.registration, row.registered_s, row.seen_s

    def _life_elsewhere(self, row: WorkerRow) -> WorkerLife:
        """The life in a row, with instants of our own clock. Its home died with our former process, if that was it."""
        now_s = self._clock.monotonic_s()
        phase, orphaned = row.life.phase, row.life.home in ("", self.scheduler_id)
        if phase is WorkerPhase.LOST or (orphaned and phase is not WorkerPhase.EVICTED):
            phase = WorkerPhase.REGISTERED
        attended = row.life.attended and not orphaned and phase is not WorkerPhase.REGISTERED
        return replace(row.life, phase=phase, seen_s=now_s, lost_s=now_s, attended=attended)

    def _tick(self) -> None:
        now_s = self._clock.now_s()
        for worker_id, member in list(self._members.items()):
            self._step(member, machine.TimePassed())
            if member.life.phase is WorkerPhase.EVICTED and member.seen_s + self.config.forget_after_s < now_s:
                del self._members[worker_id]
                self._unsaved.discard(worker_id)
                self._forgotten.add(worker_id)

    async def _settle(self) -> bool:
        """Carry out what was decided; False when something must be tried again."""
        try:
            for worker_id in list(self._expiring):
                await self._expire(worker_id)
            await self._save()
            if self._forgotten:
                await self._table.delete(tuple(self._forgotten))
                self._forgotten.clear()
        except CorralError as error:
            _logger.warning("fleet-not-settled", error=str(error), expiring=len(self._expiring))
            return False
        return True

    async def _save(self) -> None:
        async with self._table_turn:
            unsaved, self._unsaved = self._unsaved, set()
            try:
                await self._table.save([self._members[name].row() for name in unsaved if name in self._members])
            except BaseException:
                self._unsaved |= unsaved
                raise

    async def _expire(self, worker_id: str) -> None:
        async with self._expire_turn:
            if worker_id in self._expiring:
                await self._look()  # it may have gone to another scheduler instead
            if worker_id in self._expiring:
                await self._hooks.worker_lost(worker_id)
                self._expiring.discard(worker_id)

    def _until_due_s(self) -> float:
        due = [
            due_s for member in self._members.values() if (due_s := machine.due_s(member.life, self.config)) is not None
        ]
        return max(0.0, min(due, default=self._clock.monotonic_s() + _IDLE_S) - self._clock.monotonic_s())

    async def _turn_drain(self, worker_id: str, event: machine.DrainAsked | machine.DrainLifted) -> Worker:
        member = self._member(worker_id)
        await self._table.ask_drain(worker_id, drain=isinstance(event, machine.DrainAsked))
        self._step(member, event)
        return self.get(worker_id)

    def _step(self, member: Member, event: Event) -> None:
        before = member.life
        member.life, effects = machine.step(before, event, now_s=self._clock.monotonic_s(), config=self.config)
        for effect in effects:
            self._carry_out(member, effect)
        if member.life.phase is WorkerPhase.EVICTED and before.phase is not WorkerPhase.EVICTED:
            self._sessions.end(before.worker_id)
            member.end_attendance()
        if (before.phase, before.drain_asked) != (member.life.phase, member.life.drain_asked):
            if member.here or member.life.phase is WorkerPhase.EVICTED:
                self._unsaved.add(before.worker_id)
            self._work.set()
            member.changed.notify()
            self.changed.notify()

    def _carry_out(self, member: Member, effect: Effect) -> None:
        match effect:
            case ExpireLeases():
                self._expiring.add(effect.worker_id)
                self._work.set()
            case PushDesired():
                member.tell()
            case RecordWorkerEvent():
                self._record(effect)

    def _record(self, event: RecordWorkerEvent) -> None:
        _logger.info(event.kind, worker=event.worker_id, reason=event.reason)

    def _check_joinable(self, worker_id: str, instance: str) -> None:
        member = self._members.get(worker_id)
        if not machine.may_join(member.life if member is not None else None, instance):
            self._on_refusal("worker-id-conflict", worker_id, "another process with this id is connected")
            raise Conflict(
                f"another process is connected as worker {worker_id}",
                cure="give each worker an id of its own, or stop the other one",
            )

    def _member_of(self, session: Session) -> Member:
        member = self._members.get(session.worker_id)
        if (
            member is None
            or not member.here
            or member.life.instance != session.instance
            or member.life.phase is WorkerPhase.EVICTED
        ):
            raise Unauthenticated("the worker is not registered; authenticate and register again")
        return member

    def _member(self, worker_id: str) -> Member:
        member = self._members.get(worker_id)
        if member is None:
            raise NotFound(f'there is no worker "{worker_id[:70]}"')
        return member
