"""Brings together what is deployed, what workers say, and what fronts need: orders for workers, routes for fronts.

Everything here is in memory and can be lost: a scheduler that starts adopts the instances that workers report, and
decides nothing before the workers that it knows had time to come back. Nothing here waits for anything but news.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from corral.functions import placing, scaling
from corral.functions.config import FunctionsConfig
from corral.functions.homes import Homes
from corral.functions.machine import Break, Function, RevisionEntry
from corral.functions.members import Attendance, Members
from corral.functions.model import (
    FunctionKey,
    FunctionsOrders,
    FunctionsReport,
    InstanceOrder,
    InstancePhase,
    InstanceReport,
    InstanceStats,
    Prepared,
    RevisionKey,
    RevisionPhase,
    RevisionSpec,
)
from corral.functions.placing import Plan, Want
from corral.functions.preparing import Preparing
from corral.functions.registry import Registry, keys_of
from corral.functions.roster import Placement, Roster
from corral.functions.routes import Routes
from corral.functions.routing import Backend, RoutingTable, RoutingUpdate
from corral.functions.scaling import Health, ScaleState
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import CorralError, NoFeasibleWorker

_log = structlog.get_logger("corral.functions")
_LIVE: Final = (InstancePhase.STARTING, InstancePhase.READY)
_ACTOR: Final = "breaker"
_NOTHING_RUNS_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionStatus:
    """What is known of a revision besides what its owner chose; for people and metrics."""

    wanted: int
    instances: tuple[tuple[str, InstanceReport], ...]
    waiting: int
    in_flight: int
    totals: InstanceStats
    unmet: str
    failing: str


class Conductor:
    """See the module. ``run`` for as long as the scheduler serves. ``on_moved`` hears of every change of the routes."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        config: FunctionsConfig,
        *,
        epoch: str,
        new_instance_id: Callable[[], str],
        expected_workers: Callable[[], Iterable[str]] = lambda: (),
        homes: Homes | None = None,
    ) -> None:
        self._homes = homes
        self._registry = registry
        self._clock = clock
        self._config = config
        self._new_instance_id = new_instance_id
        self._expected_workers = expected_workers
        self._members = Members()
        self._roster = Roster()
        self._preparing = Preparing(self._members.wake)
        self._routes = Routes(registry, self._backends, epoch=epoch, domains=config.domains)
        self._scales: dict[RevisionKey, ScaleState] = {}
        self._healths: dict[RevisionKey, Health] = {}
        self._floors: dict[RevisionKey, bool] = {}
        self._warming: Counter[RevisionKey] = Counter()
        self._avoid: dict[RevisionKey, frozenset[str]] = {}
        self._unmet: dict[RevisionKey, str] = {}
        self._started_s = clock.monotonic_s()
        self._settled = False
        self._work = asyncio.Event()
        self.changed = Signal()
        self.on_moved: Callable[[], None] = lambda: None
        registry.on_change = self._function_changed
        for function in registry.list():
            self._function_changed(None, function)

    # The workers' side.

    def attend(self, worker: str) -> Attendance:
        """A stream was opened; an older one of the same worker ends."""
        return self._members.attend(worker)

    def heard(self, attendance: Attendance, report: FunctionsReport) -> None:
        """The worker said what is."""
        said = self._members.heard(attendance, report)
        if said is None:
            return
        before, first = said
        if (before.routes_epoch, before.routes_version) != (report.routes_epoch, report.routes_version):
            self.changed.notify()
        reported = {each.id for each in report.instances}
        for instance in report.instances:
            self._heard_instance(attendance.worker, instance)
        wanted, left = self._roster.missing(attendance.worker, reported)
        for instance_id in wanted:
            self._remove(instance_id)
        for instance_id in left:
            self._roster.forget(instance_id)
        for prepared in report.prepared:
            self._preparing.heard(attendance.worker, prepared)
        if first:
            attendance.news.set()
            self.changed.notify()
        self._work.set()

    def stream_lost(self, attendance: Attendance) -> None:
        """The stream ended, in whatever way. That of an older stream changes nothing."""
        if self._members.stream_lost(attendance, self._clock.monotonic_s()):
            self._work.set()

    def orders(self, worker: str) -> FunctionsOrders | None:
        """What the worker should do; None while nothing is decided yet."""
        if not self._settled or not self._members.has_heard(worker):
            return None
        return FunctionsOrders(instances=self._roster.orders(worker), prepare=self._preparing.orders(worker))

    def routes_since(self, told: RoutingTable | None) -> RoutingUpdate | None:
        """What a front that has ``told`` must hear; None when nothing, or while nothing is decided yet."""
        return self._routes.since(told) if self._settled else None

    @property
    def table(self) -> RoutingTable:
        """What fronts should have."""
        return self._routes.table

    # The owners' side.

    async def prepare(self, key: RevisionKey, spec: RevisionSpec, *, within_s: float) -> Prepared:
        """Let a worker check and compile the program; tries others while it is not the program's fault.

        While no worker at all is connected, as just after a start, one is waited for, ``warm_s`` at most.

        Raises: NoFeasibleWorker when no worker could even try.
        """
        await self._wait_somebody(within_s=min(within_s, self._config.warm_s))
        tried: set[str] = set()
        trouble = "no worker that hosts functions is connected"
        try:
            async with asyncio.timeout(within_s):
                while (worker := self._members.able(spec, tried)) is not None:
                    tried.add(worker)
                    prepared = await self._preparing.ask(worker, key, spec)
                    if prepared.code not in ("store-unavailable", "engine-lost", "worker-lost"):
                        return prepared
                    trouble = prepared.text
        except TimeoutError:
            trouble = f"no worker compiled it within {within_s:g} s"
        if not tried:
            trouble = self._members.why_unable(spec) or trouble
        raise NoFeasibleWorker(f"the program cannot be prepared: {trouble}", cure="`corral worker list` shows workers")

    async def _wait_somebody(self, *, within_s: float) -> None:
        until_s = self._clock.monotonic_s() + within_s
        while not self.hosts() and (left_s := until_s - self._clock.monotonic_s()) > 0:
            await self.changed.wait_notified(within_s=left_s)

    async def warm(self, key: RevisionKey, *, within_s: float) -> str:
        """Have one live instance of the revision; "" when there is one, else why not, after ``within_s`` at most."""
        until_s = self._clock.monotonic_s() + within_s
        blamed_before = self._healths.get(key, Health()).blamed
        self._warming[key] += 1
        self._work.set()
        try:
            while True:
                if self._roster.ready(key) or self._elsewhere(key):
                    return ""
                health = self._healths.get(key, Health())
                left_s = until_s - self._clock.monotonic_s()
                if health.broken or health.blamed > blamed_before:
                    return health.broken or health.last_failure
                if not self._registry.active(key) or left_s <= 0:
                    why = self._unmet.get(key, "") or "no instance became ready in time"
                    _log.warning("revision-not-warm", function=str(key.function), revision=key.revision, why=why)
                    return why
                await self.changed.wait_notified(within_s=left_s)
        finally:
            self._warming[key] -= 1
            if self._warming[key] <= 0:
                del self._warming[key]

    async def wait_routed(self, key: FunctionKey, version: int, *, within_s: float) -> bool:
        """Wait until all connected fronts route by this version of the function, or a later one; False if too late."""
        until_s = self._clock.monotonic_s() + within_s
        while True:
            left_s = until_s - self._clock.monotonic_s()
            if self._is_routed(key, version):
                return True
            if left_s <= 0:
                return False
            await self.changed.wait_notified(within_s=left_s)

    def _is_routed(self, key: FunctionKey, version: int) -> bool:
        return self._settled and self._routes.used_by_all(key, version, self.hosts().values())

    async def exchange(self) -> None:
        """Tell the other schedulers what is conducted here, and take over what they tell. Raises StoreUnavailable."""
        if self._homes is None:
            return
        self._routes.dirty.update(await self._homes.exchange(self._roster.settled()))
        if self._routes.dirty:
            self._work.set()

    async def leave(self) -> None:
        """Let the others know that this scheduler conducts no more. Raises StoreUnavailable."""
        if self._homes is not None:
            await self._homes.leave()

    def status(self, key: RevisionKey) -> RevisionStatus:
        """What is known of a revision."""
        waiting, in_flight = self._members.demand_of(key)
        health = self._healths.get(key, Health())
        instances = tuple(
            (each.worker, each.report or InstanceReport(id=name, key=key, phase=InstancePhase.STARTING))
            for name, each in self._roster.of(key)
        )
        return RevisionStatus(
            wanted=self._scales.get(key, ScaleState()).wanted,
            instances=instances,
            waiting=waiting,
            in_flight=in_flight,
            totals=self._roster.total(key),
            unmet=self._unmet.get(key, ""),
            failing=health.broken or health.last_failure,
        )

    def fronts(self) -> list[str]:
        """Where functions can be called."""
        return self._members.fronts()

    def why_no_front(self) -> str:
        """Why functions can be called nowhere now, in one sentence; "" when they can be."""
        return self._members.why_no_front()

    def hosts(self) -> Mapping[str, FunctionsReport]:
        """What each connected worker said last."""
        return self._members.attended()

    # Deciding.

    async def run(self) -> None:
        """Decide at every piece of news and every tick, until cancelled."""
        while True:
            self._work.clear()
            wait_s = self._config.tick_s
            if self._is_settled():
                breaks = self.look()
                await self._break(breaks)
                if not self._is_busy():
                    wait_s = max(wait_s, _NOTHING_RUNS_S)  # whatever begins is news, and wakes us
            else:
                wait_s = 0.05
            try:
                async with asyncio.timeout(wait_s):
                    await self._work.wait()
            except TimeoutError:
                continue

    def _is_busy(self) -> bool:
        """True when the clock alone may change what should be: an instance is there, or somebody wants one."""
        return bool(
            self._floors or self._warming or any(self._members.demands().values()) or {*self._roster.live_keys()}
        )

    def look(self) -> list[tuple[RevisionKey, Break]]:
        """One comparison of what is with what should be; which revisions are found bad."""
        now_s = self._clock.monotonic_s()
        self._drop_lost(now_s)
        self._drop_late(now_s)
        wants, breaks = self._wants(now_s)
        plan = placing.plan(self._members.seats(), self._roster.as_placed(), wants, now_s=now_s)
        self._carry_out(plan)
        if self._routes.rebuild():
            self.changed.notify()
            self.on_moved()
        self._tell()
        return breaks

    def _wants(self, now_s: float) -> tuple[list[Want], list[tuple[RevisionKey, Break]]]:
        demands = self._members.demands()
        keys = {*self._floors, *demands, *self._scales, *self._roster.live_keys(), *self._warming}
        wants: list[Want] = []
        breaks: list[tuple[RevisionKey, Break]] = []
        for key in sorted(keys, key=lambda each: (-demands[each], each)):
            entry = self._registry.entry(key)
            if entry is None or not self._registry.active(key):
                self._scales.pop(key, None)
                continue
            health = self._healths.get(key, Health())
            total = self._roster.total(key)
            bad = total.traps + total.timeouts
            health = scaling.counted(health, requests=total.requests, bad=bad, now_s=now_s, config=self._config)
            self._healths[key] = health
            if health.broken:
                breaks.append((key, Break(key.revision, key.fingerprint, health.broken)))
                continue
            wants.append(self._want(key, entry, demands[key], health, now_s))
        return wants, breaks

    def _want(self, key: RevisionKey, entry: RevisionEntry, demand: int, health: Health, now_s: float) -> Want:
        serving, warming = self._floors.get(key, False), self._warming[key] > 0
        before = self._scales.get(key) or ScaleState(wanted=self._roster.live(key))
        scale = scaling.without(entry.scale, self._homes.before(key) if self._homes is not None else 0)
        state = scaling.scaled(before, scale, demand=max(demand, int(warming)), serving=serving, now_s=now_s)
        if state == ScaleState():
            self._scales.pop(key, None)
        else:
            self._scales[key] = state
        needed = min(max(scaling.needed(scale, demand), scale.min if serving else 0, int(warming)), scale.max)
        return Want(
            key=key,
            spec=self._registry.spec(key),
            count=state.wanted,
            spare=max(0, state.wanted - needed),
            not_before_s=health.retry_at_s,
            avoid=self._avoid.get(key, frozenset()),
        )

    def _carry_out(self, plan: Plan) -> None:
        for instance_id in plan.remove:
            self._remove(instance_id)
        for place in plan.place:
            order = InstanceOrder(id=self._new_instance_id(), key=place.key, spec=self._registry.spec(place.key))
            self._roster.place(Placement(order, place.worker, self._clock.monotonic_s()))
        self._unmet = {each.key: each.why for each in plan.unmet}
        if plan.unmet:
            self.changed.notify()

    def _drop_lost(self, now_s: float) -> None:
        lost = self._members.forget_lost(now_s - self._config.reconnect_grace_s)
        wanted, leaving = self._roster.on(lost)
        for instance_id in wanted:
            self._remove(instance_id)
        for instance_id in (*wanted, *leaving):
            self._roster.forget(instance_id)
        self._preparing.lost(lost)

    def _drop_late(self, now_s: float) -> None:
        """A start that takes too long has failed, whatever its worker will say of it."""
        for instance_id, placement in self._roster.all():
            if placement.phase is InstancePhase.STARTING and now_s > placement.ordered_s + self._config.start_s:
                text = f"it was not ready within {self._config.start_s:g} s"
                self._start_failed(placement.worker, instance_id, placement.order.key, blame=False, text=text)
                self._remove(instance_id)

    def _elsewhere(self, key: RevisionKey) -> tuple[Backend, ...]:
        return self._homes.backends(key) if self._homes is not None else ()

    def _backends(self, key: RevisionKey) -> tuple[Backend, ...]:
        return (*self._roster.backends(key), *self._elsewhere(key))

    def _tell(self) -> None:
        for attendance in self._members.listening():
            stale = attendance.told_routes is not self._routes.table
            if stale or attendance.told_orders != self.orders(attendance.worker):
                attendance.news.set()

    async def _break(self, breaks: Sequence[tuple[RevisionKey, Break]]) -> None:
        for key, command in breaks:
            _log.warning("revision-broken", function=str(key.function), revision=key.revision, why=command.why)
            try:
                await self._registry.apply(key.function, command, actor=_ACTOR)
            except CorralError as error:
                _log.warning("revision-not-stopped", function=str(key.function), error=str(error))

    # What was heard.

    def _heard_instance(self, worker: str, report: InstanceReport) -> None:
        leaving = self._roster.find_leaving(report.id)
        if leaving is not None:
            leaving.report = report
            return
        placement = self._roster.find(report.id)
        if placement is None:
            if report.phase in _LIVE and self._registry.active(report.key):
                order = InstanceOrder(id=report.id, key=report.key, spec=self._registry.spec(report.key))
                self._roster.place(Placement(order, worker, self._clock.monotonic_s(), report))
                self._routes.dirty.add(report.key.function)
            return
        before, placement.report = placement.phase, report
        if report.phase is before:
            return
        self._routes.dirty.add(report.key.function)
        if self._registry.entry(report.key) is not None:
            self._heard_phase(worker, report)
        if report.phase not in _LIVE and report.phase is not InstancePhase.DRAINING:
            self._remove(report.id)
        self.changed.notify()

    def _heard_phase(self, worker: str, report: InstanceReport) -> None:
        health = self._healths.get(report.key, Health())
        if report.phase is InstancePhase.READY:
            self._healths[report.key] = scaling.became_ready(health, now_s=self._clock.monotonic_s())
            self._avoid.pop(report.key, None)
        elif report.phase is InstancePhase.FAILED:
            text = report.text or report.reason
            self._start_failed(worker, report.id, report.key, blame=report.blame, text=text)

    def _start_failed(self, worker: str, instance_id: str, key: RevisionKey, *, blame: bool, text: str) -> None:
        health, now_s = self._healths.get(key, Health()), self._clock.monotonic_s()
        self._healths[key] = scaling.start_failed(health, blame=blame, text=text, now_s=now_s, config=self._config)
        self._avoid[key] = self._avoid.get(key, frozenset()) | {worker}
        _log.warning("instance-failed", instance=instance_id, worker=worker, blame=blame, text=text)

    def _remove(self, instance_id: str) -> None:
        """It is wanted no more. Its worker may go on reporting it while its last requests end."""
        self._routes.dirty.add(self._roster.remove(instance_id).order.key.function)

    def _function_changed(self, before: Function | None, after: Function | None) -> None:
        known = {key: self._entry_of(before, key) for key in keys_of(before)} if before is not None else {}
        current = {} if after is None else {after.revision_key(each): each for each in after.state.revisions}
        for key in known.keys() | current.keys():
            entry, earlier = current.get(key), known.get(key)
            self._floors.pop(key, None)
            if entry is None:
                for kept in (self._healths, self._scales, self._avoid):
                    kept.pop(key, None)
                self._roster.forget_totals(key)
            elif entry.phase is RevisionPhase.ACTIVE:
                if earlier is not None and earlier.phase is not RevisionPhase.ACTIVE:
                    self._healths.pop(key, None)
                if after is not None and after.state.percent(entry.name) and entry.scale.min:
                    self._floors[key] = True
        self._routes.dirty.update(each.key for each in (before, after) if each is not None)
        self._work.set()

    @staticmethod
    def _entry_of(function: Function | None, key: RevisionKey) -> RevisionEntry | None:
        return function.state.revision(key.revision) if function is not None else None

    def _is_settled(self) -> bool:
        if not self._settled:
            missing = self._members.missing(self._expected_workers())
            late = self._clock.monotonic_s() >= self._started_s + self._config.settle_s
            self._settled = late or not missing
        return self._settled
