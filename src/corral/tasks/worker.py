"""The worker's loops: claim, carry out, renew leases, report; and its three ends.

* *drain*: take nothing new, give back what was claimed ahead, finish what runs, return;
* *stop now*: abort all runs as worker-shutdown (the queue starts them elsewhere), then raise ``WorkerStopped``;
* the queue takes a run away (canceled, lease lost), or a lease ends that could not be renewed: that run is aborted
  here, at once, whether or not the scheduler can be reached. A worker that is cut off never works on.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from msgspec.structs import replace

from corral.fleet.model import RunRef
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import CallerError, CorralError
from corral.tasks.claim_ahead import Pace
from corral.tasks.model import Reason, Resolved, Returned, RunReport, Started
from corral.tasks.plugin import Plugin
from corral.tasks.ports import Claim, TaskSource
from corral.tasks.run import Run, RunServices
from corral.tasks.run_config import WorkerConfig

_log = structlog.get_logger(__name__)


class WorkerStopped(Exception):
    """The worker was stopped with ``stop_now``, or a plugin of it died; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatistics:
    """What a worker has done since it started, and what it does now."""

    claimed: int
    completed: int
    failed: int
    exceptions: int
    aborted: int
    leases_lost: int
    reports_refused: int
    executing: int
    waiting: int
    ending: int
    slots_free: int


@dataclass(slots=True, eq=False)
class _Held:
    """A run that we hold. The times are of the monotonic clock; ``since_s`` is when it was claimed."""

    run: Run
    start: "_StartNews"
    since_s: float
    lease_end_s: float = 0.0
    renew_s: float = 0.0
    executing: bool = False


class Worker:
    """One worker's loops. Made once, run once."""

    def __init__(
        self,
        source: TaskSource,
        services: RunServices,
        config: WorkerConfig,
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_change`` is called when a run began or ended; it must not wait."""
        self._source = source
        self._services = services
        self._config = config
        self._clock: Clock = services.clock
        self._on_change = on_change
        self._held: dict[RunRef, _Held] = {}
        self._ahead: deque[_Held] = deque()
        self._pace = Pace(window_s=config.claim_ahead_s, most=config.claim_ahead)
        self._runs: asyncio.TaskGroup | None = None
        self._executing = 0
        self._room = Signal()
        self._taken = Signal()
        self._draining = asyncio.Event()
        self._on_hold = False
        self._stopped_why = ""
        self._claiming: asyncio.Timeout | None = None
        self._idle_since_s = self._clock.monotonic_s()
        self._claimed = self._completed = self._failed = self._exceptions = 0
        self._aborted = self._leases_lost = self._refused = 0

    # ---- what others ask ----

    def drain(self) -> None:
        """Take nothing new, finish what runs, end. Idempotent."""
        if not self._draining.is_set():
            self._draining.set()
            self._give_back(tuple(self._ahead))
            self._room.notify()
            if self._claiming is not None:
                self._claiming.reschedule(asyncio.get_running_loop().time())
            self._on_change()

    def hold(self, *, on: bool) -> None:
        """While on, nothing new is taken and what runs goes on; unlike a drain it can be taken back."""
        if on == self._on_hold:
            return
        self._on_hold = on
        if on:
            self._give_back(tuple(self._ahead))
        self._room.notify()
        if on and self._claiming is not None:
            self._claiming.reschedule(asyncio.get_running_loop().time())
        self._on_change()

    def stop_now(self, why: str) -> None:
        """Abort all runs as worker-shutdown, end with ``WorkerStopped(why)``. Idempotent, the first reason stands."""
        self._stopped_why = self._stopped_why or why
        self.drain()
        self._abort(list(self._held), Reason.WORKER_SHUTDOWN)

    def cancel(self, refs: Iterable[RunRef]) -> None:
        """The queue wants these runs to end; those that we do not hold are ignored."""
        self._abort(refs, Reason.CANCELED)

    @property
    def draining(self) -> bool:
        """True when the worker takes nothing new and ends with its last run."""
        return self._draining.is_set()

    @property
    def on_hold(self) -> bool:
        """True while nothing new is taken because somebody asked for it."""
        return self._on_hold

    @property
    def slots_free(self) -> int:
        """How many more runs may begin now."""
        if self.draining or self._on_hold:
            return 0
        ending = len(self._held) - self._executing - len(self._ahead)
        return max(0, min(self._config.slots - self._executing, self._config.ending_max - ending))

    @property
    def runs(self) -> Collection[RunRef]:
        """Every run that we hold, those too that are telling their end."""
        return tuple(self._held)

    def statistics(self) -> WorkerStatistics:
        """See ``WorkerStatistics``."""
        return WorkerStatistics(
            claimed=self._claimed,
            completed=self._completed,
            failed=self._failed,
            exceptions=self._exceptions,
            aborted=self._aborted,
            leases_lost=self._leases_lost,
            reports_refused=self._refused,
            executing=self._executing,
            waiting=len(self._ahead),
            ending=len(self._held) - self._executing - len(self._ahead),
            slots_free=self.slots_free,
        )

    # ---- life ----

    async def run(self) -> None:
        """Work until drained or stopped.

        Raises:
            WorkerStopped: after ``stop_now``, when every run has ended.
        Cancellation: kills all runs first; nothing is reported, so their leases end on their own.
        """
        try:
            async with asyncio.TaskGroup() as outer:
                beside = [
                    outer.create_task(self._serve(plugin), name=f"plugin:{plugin.name}")
                    for plugin in self._services.plugins
                    if type(plugin).serve is not Plugin.serve
                ]
                beside.append(outer.create_task(self._keep_leases(), name="leases"))
                async with asyncio.TaskGroup() as self._runs:
                    await self._claim_until_drained()
                for task in beside:
                    task.cancel()  # only now: a run without its lease's renewal would be lost
        finally:
            for plugin in self._services.plugins:
                await self._close(plugin)
        if self._stopped_why:
            raise WorkerStopped(self._stopped_why)

    async def _serve(self, plugin: Plugin) -> None:
        try:
            await plugin.serve(self)
        except Exception as error:  # noqa: BLE001 (extension boundary: a dead plugin must not take runs down unreported)
            _log.error("plugin died", plugin=plugin.name, exc_info=error)
            self.stop_now(f"the plugin {plugin.name} died: {error!r}")

    async def _close(self, plugin: Plugin) -> None:
        try:
            await plugin.close()
        except Exception as error:  # noqa: BLE001 (extension boundary: the others are closed too)
            _log.error("plugin not closed", plugin=plugin.name, exc_info=error)

    # ---- claiming ----

    async def _claim_until_drained(self) -> None:
        pause_s = self._config.retry_s
        while not self.draining:
            if self.slots_free + self._room_ahead == 0:
                await self._room.wait_notified(within_s=self._config.claim_wait_s)
                continue
            await self._gather_room()
            free, ahead = self.slots_free, self._room_ahead
            if free + ahead == 0:
                continue  # drained or held meanwhile
            self._tell_idle()
            try:
                claims = await self._claim(free, ahead)
            except CorralError as error:
                _log.warning("claim failed", error=str(error), retry_s=pause_s)
                await self._wait_draining(pause_s)
                pause_s = min(pause_s * 2, self._config.retry_max_s)
                continue
            pause_s = self._config.retry_s
            for claim in claims:
                self._take(claim)
            if claims:
                self._on_change()
            elif free == 0 and self.slots_free == 0:  # nothing more is there; a slot that becomes free asks again
                await self._room.wait_notified(within_s=self._config.claim_wait_s)

    @property
    def _room_ahead(self) -> int:
        """How many runs may be claimed for slots that will be free in a moment."""
        waiting = len(self._ahead)
        if self.draining or self._on_hold or len(self._held) - waiting >= self._config.slots + self._config.ending_max:
            return 0
        return self._pace.room(self._clock.monotonic_s(), waiting=waiting)

    async def _gather_room(self) -> None:
        """A worker of which more than half is busy waits a moment: one claim for several costs little more than one."""
        until_s = self._clock.monotonic_s() + self._config.claim_gather_s
        while 0 < (self.slots_free + self._room_ahead) * 2 < self._config.slots and not self.draining:
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0 or not await self._room.wait_notified(within_s=left_s):
                return

    async def _claim(self, free: int, ahead: int) -> Sequence[Claim]:
        claims: Sequence[Claim] = ()
        poll = asyncio.timeout(None)
        try:
            async with poll:
                self._claiming = poll
                claims = await self._source.claim(free, wait_s=self._config.claim_wait_s, ahead=ahead)
        except TimeoutError:
            if not poll.expired():  # whatever was asked meanwhile: a hold may be over before the poll has ended
                raise
        finally:
            self._claiming = None
        return claims  # none, when a drain or a hold ended the poll; what the queue gave us then expires there

    def _take(self, claim: Claim) -> None:
        """Take a claim on; also when a stop came meanwhile, so that the queue hears of its end."""
        ref = claim.ref
        if ref in self._held:
            return  # the queue told us twice
        self._claimed += 1
        start = _StartNews(self, ref, self._config.started_wait_s)
        held = self._held[ref] = _Held(
            Run(self._services, claim, on_started=start.send), start, since_s=self._clock.monotonic_s()
        )
        self._renewed(held, claim.lease_until_s)
        self._taken.notify()
        if self._executing < self._config.slots:
            self._begin(held)
        else:
            self._ahead.append(held)
            if self.draining or self._on_hold:
                self._give_back((held,))
        if self._stopped_why:
            held.run.abort(Reason.WORKER_SHUTDOWN)

    def _begin(self, held: _Held) -> None:
        held.executing = True
        self._executing += 1
        ref = held.run.claim.ref
        self.beside(self._attempt(held), name=f"run:{ref.task_id}/{ref.run}")

    def _begin_waiting(self) -> None:
        while self._ahead and self._executing < self._config.slots:
            self._begin(self._ahead.popleft())

    def _give_back(self, some: Iterable[_Held]) -> None:
        """Runs that were claimed ahead: somebody else may have them. None of them has begun."""
        for held in some:
            self._ahead.remove(held)
            self.beside(self._return(held), name=f"return:{held.run.claim.ref.task_id}")

    async def _return(self, held: _Held) -> None:
        ref = held.run.claim.ref
        try:
            await self.tell(ref, Returned())
        finally:
            self._let_go(ref)

    def beside(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Carry out ``work`` beside the loops; the worker ends after it."""
        assert self._runs is not None  # whoever has a run has claimed it, so the group is open
        self._runs.create_task(work, name=name)

    def _tell_idle(self) -> None:
        if not self._held:
            idle_s = self._clock.monotonic_s() - self._idle_since_s
            for plugin in self._services.plugins:
                plugin.idle(idle_s)

    async def _wait_draining(self, within_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._draining.wait()

    # ---- one run ----

    async def _attempt(self, held: _Held) -> None:
        ref = held.run.claim.ref
        try:
            try:
                report = await held.run.carry_out()
            finally:
                held.executing = False
                self._executing -= 1
                self._pace.ended(self._clock.monotonic_s())
                self._begin_waiting()
                self._room.notify()
            self._count(report)
            started_s = held.start.withdraw()
            if report is not None:
                await self.tell(ref, report if started_s is None else replace(report, started_s=started_s))
        finally:
            self._let_go(ref)

    def _let_go(self, ref: RunRef) -> None:
        del self._held[ref]
        if not self._held:
            self._idle_since_s = self._clock.monotonic_s()
        self._room.notify()
        self._on_change()

    def _count(self, report: Resolved | None) -> None:
        if report is None:
            self._aborted += 1
        elif report.reason is not None:
            self._exceptions += 1
        elif report.phase == "completed":
            self._completed += 1
        else:
            self._failed += 1

    async def tell(self, ref: RunRef, report: RunReport) -> None:
        """Tell the queue, again and again while it cannot be reached and the lease is ours."""
        pause_s = self._config.retry_s
        while (held := self._held.get(ref)) is not None:
            left_s = held.lease_end_s - self._clock.monotonic_s()
            if left_s <= 0:
                _log.warning("report given up: the lease has ended", task=ref.task_id, run=ref.run)
                return
            try:
                async with asyncio.timeout(left_s):  # a source may try for as long as it is let
                    await self._source.report(ref, report)
            except TimeoutError:
                continue  # the lease may have been renewed meanwhile
            except CallerError as error:  # Conflict above all: the run is no longer ours
                self._refused += 1
                _log.info("report refused", task=ref.task_id, run=ref.run, error=str(error))
                if isinstance(report, Started):
                    self._lost([ref])
                return
            except CorralError as error:
                _log.warning("report failed", task=ref.task_id, run=ref.run, error=str(error), retry_s=pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, self._config.retry_max_s)
            except Exception as error:  # noqa: BLE001 (attempt boundary: one report must not end the other runs)
                _log.error("report lost", task=ref.task_id, run=ref.run, exc_info=error)
                return
            else:
                return

    def _lost(self, refs: Iterable[RunRef]) -> None:
        """These leases are no longer ours: whoever holds them now must not have us beside him."""
        for held in self._aborted_now(refs, Reason.CLAIM_EXPIRED):
            self._leases_lost += 1
            ref = held.run.claim.ref
            _log.warning("run aborted: its lease is lost", task=ref.task_id, run=ref.run)

    def _abort(self, refs: Iterable[RunRef], reason: Reason) -> None:
        for held in self._aborted_now(refs, reason):
            ref = held.run.claim.ref
            _log.info("run aborted", task=ref.task_id, run=ref.run, reason=reason.value)

    def _aborted_now(self, refs: Iterable[RunRef], reason: Reason) -> Iterable[_Held]:
        for ref in refs:
            held = self._held.get(ref)
            if held is not None and held.run.abort(reason):
                if held in self._ahead:
                    self._ahead.remove(held)
                    self._begin(held)  # it has its end already, and only tells it
                yield held

    # ---- leases ----

    async def _keep_leases(self) -> None:
        while True:
            if not self._held:
                await self._taken.wait_notified(within_s=self._config.claim_wait_s)
                continue
            await asyncio.sleep(self._until_next_look_s())
            now_s = self._clock.monotonic_s()
            self._drop_ended(now_s)
            keep_s = self._config.claim_ahead_keep_s
            self._give_back([held for held in self._ahead if now_s - held.since_s >= keep_s])
            due = [ref for ref, held in self._held.items() if held.renew_s <= now_s < held.lease_end_s]
            if due:
                await self._renew(due)

    def _until_next_look_s(self) -> float:
        now_s = self._clock.monotonic_s()
        ours = (held.lease_end_s for held in self._held.values() if held.executing and not held.run.ended)
        return max(0.0, min(self._config.tick_s, min(ours, default=now_s + self._config.tick_s) - now_s))

    def _drop_ended(self, now_s: float) -> None:
        self._lost(ref for ref, held in tuple(self._held.items()) if now_s >= held.lease_end_s)

    async def _renew(self, refs: Sequence[RunRef]) -> None:
        ends_s = min(self._held[ref].lease_end_s for ref in refs)
        try:
            async with asyncio.timeout(max(0.0, ends_s - self._clock.monotonic_s())):
                answer = await self._source.reclaim(refs)
        except (CorralError, TimeoutError) as error:
            _log.warning("leases not renewed", runs=len(refs), error=str(error) or "no answer in time")
            for ref in refs:
                if ref in self._held:
                    self._held[ref].renew_s = self._clock.monotonic_s() + self._config.tick_s
            return
        for ref, until_s in answer.items():
            held = self._held.get(ref)
            if held is None:
                continue
            if until_s is None:
                held.lease_end_s = self._clock.monotonic_s()
                self._lost([ref])
            else:
                self._renewed(held, until_s)

    def _renewed(self, held: _Held, until_s: float) -> None:
        """The queue's wall time becomes ours: what is left of the lease, from now."""
        left_s = max(0.0, until_s - self._clock.now_s())
        now_s = self._clock.monotonic_s()
        held.lease_end_s = now_s + left_s
        held.renew_s = now_s + left_s * self._config.lease_part


class _StartNews:
    """Tells that a command was started: after a moment and beside the run, or with its end when that comes first."""

    def __init__(self, worker: Worker, ref: RunRef, wait_s: float) -> None:
        self._worker = worker
        self._ref = ref
        self._wait_s = wait_s
        self._at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def send(self, at_s: float) -> None:
        """Called by the run."""
        self._at_s = at_s
        self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._tell)

    def withdraw(self) -> float | None:
        """When the command was started, if that was not told yet; then it is told no more."""
        timer, self._timer = self._timer, None
        if timer is None:
            return None
        timer.cancel()
        return self._at_s

    def _tell(self) -> None:
        self._timer = None
        ref = self._ref
        self._worker.beside(self._worker.tell(ref, Started(at_s=self._at_s)), name=f"started:{ref.task_id}/{ref.run}")
