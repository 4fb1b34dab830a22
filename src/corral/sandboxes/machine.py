"""The pure life of pools of sandboxes: who gets one, which are started, kept, reset and stopped.

Nothing here does I/O or reads a clock; the shell in ``sandboxes.pool`` carries the effects out and reports back.
Life of one entry::

    STARTING ──Started──► IDLE ──(asked)──► BUSY ──Released──► RESETTING ──ResetDone(clean)──► IDLE
        │                   │                 │ soiled, too old      │ not clean
        └─StartFailed─► (gone)   ├────────────┴──────────────────────┴──► STOPPING ──Stopped──► (gone)
                                 └─(idle too long)─► FREEZING ──Frozen──► FROZEN ──(asked)──► a new STARTING one
                                                        └─Stopped─► (gone)   └─(too old, too many)─► (gone)

An entry counts against every bound from the decision to start it until it is gone or FROZEN, so bounds are bounds on
real processes; frozen ones have a bound of their own. Who thaws gets a new entry with a new id, and the old one is used
up. A *key* never changes for the life of an entry, and holds the tenant: no entry ever serves two tenants.
``Asked`` with an idle entry at hand is the hot path and costs O(1); everything else happens in ``plan``, which
compares what is with what should be.
"""

from collections import deque
from collections.abc import Callable, Collection
from typing import assert_never

from corral.sandboxes.pool_model import (
    Asked,
    Closed,
    Cold,
    Died,
    Effect,
    Event,
    Forget,
    Freeze,
    Frozen,
    GaveUp,
    HandOut,
    Phase,
    Pinned,
    PoolConfig,
    PoolKey,
    RefusalKind,
    Refuse,
    Released,
    Reset,
    ResetDone,
    Start,
    Started,
    StartFailed,
    Stop,
    Stopped,
)
from corral.sandboxes.pool_state import Entry, Pool, PoolState, Waiter


class PoolMachine:
    """All pools of one worker: events in, effects out, no I/O. Not a value: ``step`` and ``plan`` change it in place,
    because copying hundreds of entries for every warm hand-out would cost more than the hand-out.

    ``now_s`` is monotonic time and never goes back.
    """

    def __init__(self, config: PoolConfig, new_id: Callable[[], str], *, freezing: Collection[str] = ()) -> None:
        """``freezing`` names the runtimes that can freeze a sandbox and go on from it."""
        self.config = config
        self.state = PoolState(config)
        self._new_id = new_id
        self._can_freeze = frozenset(freezing) if config.frozen_max else frozenset()

    # ---- events ----

    def step(  # noqa: C901, PLR0911 - one line per event
        self, event: Event, *, now_s: float
    ) -> tuple[Effect, ...]:
        """Apply one event. Late, repeated and stale events change nothing. Call ``plan`` soon afterwards."""
        match event:
            case Asked():
                return self._asked(event, now_s)
            case Released():
                return self._released(event, now_s)
            case ResetDone():
                return self._reset_done(event, now_s)
            case Started():
                return self._started(event, now_s)
            case StartFailed():
                return self._start_failed(event, now_s)
            case GaveUp():
                return self._gave_up(event)
            case Died():
                return self._died(event, now_s)
            case Frozen():
                return self._frozen(event, now_s)
            case Stopped():
                return self._stopped(event)
            case Pinned():
                self._pool(event.key).pinned = event.keep
                return ()
            case Closed():
                return self._close(now_s)
            case _:
                assert_never(event)

    def _asked(self, event: Asked, now_s: float) -> tuple[Effect, ...]:
        if self.state.closed:
            return (Refuse(event.ticket, RefusalKind.CLOSED),)
        known = event.key in self.state.pools
        pool = self._pool(event.key)
        if pool.idle and not pool.waiting and self.state.may_take(event.key.tenant):
            pool.asked_s = now_s
            return (self._hand_out(pool, event.ticket, None, now_s),)
        if pool.closed_until_s > now_s:
            return (Refuse(event.ticket, RefusalKind.START_FAILED, pool.failure),)
        if len(self.state.waiting) >= self.config.waiting_max:
            return (Refuse(event.ticket, RefusalKind.LINE_FULL),)
        pool.asked_s = now_s
        waiter = Waiter(event.ticket, event.key, self._why_cold(pool, known=known, tenant=event.key.tenant))
        pool.waiting.append(waiter)
        self.state.waiting[event.ticket] = waiter
        return ()

    def _gave_up(self, event: GaveUp) -> tuple[Effect, ...]:
        waiter = self.state.waiting.pop(event.ticket, None)
        if waiter is not None:
            self.state.pools[waiter.key].waiting.remove(waiter)
        return ()

    def _started(self, event: Started, now_s: float) -> tuple[Effect, ...]:
        entry = self.state.in_phase(event.id, Phase.STARTING)
        if entry is None:
            return ()
        pool = self.state.pools[entry.key]
        pool.starting -= 1
        self.state.starting -= 1
        pool.failures, pool.failure = 0, None
        if not entry.thawed:
            entry.born_s = now_s
        return self._make_idle(pool, entry, now_s)

    def _start_failed(self, event: StartFailed, now_s: float) -> tuple[Effect, ...]:
        entry = self.state.entries.get(event.id)
        if entry is None or entry.phase not in (Phase.STARTING, Phase.STOPPING):
            return ()
        if entry.phase is Phase.STOPPING:
            return self._stopped(Stopped(event.id))
        pool = self.state.pools[entry.key]
        del self.state.entries[event.id]
        pool.starting -= 1
        self.state.starting -= 1
        if entry.thawed:
            return ()  # the snapshot is used up, and a start without one may go well
        pool.failures += 1
        pool.failure = event.cause
        if not event.hopeless and pool.failures < self.config.breaker_failures:
            return ()
        pause_s = self.config.breaker_backoff_s * 2.0 ** min(32, max(0, pool.failures - self.config.breaker_failures))
        pool.closed_until_s = now_s + min(pause_s, self.config.breaker_backoff_max_s)
        pool.asked_s = float("-inf")  # no spares until somebody asks again
        return self._refuse_all(pool, RefusalKind.START_FAILED, event.cause)

    def _released(self, event: Released, now_s: float) -> tuple[Effect, ...]:
        entry = self.state.in_phase(event.id, Phase.BUSY)
        if entry is None or entry.ticket != event.ticket:
            return ()
        pool = self.state.pools[entry.key]
        self._give_back(pool, entry)
        if event.soiled:
            return (self._stop(pool, entry, "soiled", now_s), *self._serve_tenant(entry.key.tenant, now_s))
        if now_s - entry.born_s >= self.config.lifetime_s:
            return (self._stop(pool, entry, "lifetime", now_s), *self._serve_tenant(entry.key.tenant, now_s))
        entry.phase, entry.since_s = Phase.RESETTING, now_s
        pool.resetting += 1
        return (Reset(entry.id), *self._serve_tenant(entry.key.tenant, now_s))

    def _reset_done(self, event: ResetDone, now_s: float) -> tuple[Effect, ...]:
        entry = self.state.in_phase(event.id, Phase.RESETTING)
        if entry is None:
            return ()
        pool = self.state.pools[entry.key]
        pool.resetting -= 1
        if not event.clean:
            return (self._stop(pool, entry, "not clean after reset", now_s),)
        return self._make_idle(pool, entry, now_s)

    def _died(self, event: Died, now_s: float) -> tuple[Effect, ...]:
        entry = self.state.entries.get(event.id)
        if entry is None or entry.phase not in (Phase.IDLE, Phase.RESETTING, Phase.BUSY):
            return ()  # a start that dies is reported as StartFailed, and who is frozen or stopped dies of it
        pool = self.state.pools[entry.key]
        served: tuple[Effect, ...] = ()
        if entry.phase is Phase.IDLE:
            pool.idle.remove(entry)
        elif entry.phase is Phase.RESETTING:
            pool.resetting -= 1
        else:
            self._give_back(pool, entry)
            served = self._serve_tenant(entry.key.tenant, now_s)
        return (self._stop(pool, entry, "died", now_s), *served)

    def _frozen(self, event: Frozen, now_s: float) -> tuple[Effect, ...]:
        entry = self.state.entries.get(event.id)
        if entry is None or entry.phase not in (Phase.FREEZING, Phase.STOPPING):
            return ()
        if entry.phase is Phase.STOPPING:  # the wish to stop it came too late
            return (*self._stopped(Stopped(event.id)), Forget(event.id, "closing"))
        pool = self.state.pools[entry.key]
        pool.freezing -= 1
        del self.state.entries[event.id]
        entry.phase, entry.since_s = Phase.FROZEN, now_s
        pool.frozen.append(entry)
        return ()

    def _stopped(self, event: Stopped) -> tuple[Effect, ...]:
        entry = self.state.entries.get(event.id)
        if entry is None or entry.phase not in (Phase.STOPPING, Phase.FREEZING):
            return ()
        pool = self.state.pools[entry.key]
        if entry.phase is Phase.STOPPING:
            pool.stopping -= 1
        else:
            pool.freezing -= 1
        del self.state.entries[event.id]
        return ()

    def _close(self, now_s: float) -> tuple[Effect, ...]:
        self.state.closed = True
        effects: list[Effect] = []
        for pool in self.state.pools.values():
            effects += self._refuse_all(pool, RefusalKind.CLOSED, None)
            effects += [Forget(entry.id, "closing") for entry in pool.frozen]
            pool.frozen.clear()
            pool.pinned = False
        for entry in self.state.entries.values():
            if entry.phase is Phase.STOPPING:
                continue
            pool = self.state.pools[entry.key]
            if entry.phase is Phase.STARTING:
                pool.starting -= 1
                self.state.starting -= 1
            elif entry.phase is Phase.IDLE:
                pool.idle.remove(entry)
            elif entry.phase is Phase.RESETTING:
                pool.resetting -= 1
            elif entry.phase is Phase.FREEZING:
                pool.freezing -= 1
            else:
                self._give_back(pool, entry)
            effects.append(self._stop(pool, entry, "closing", now_s))
        return tuple(effects)

    # ---- what should be ----

    def plan(self, *, now_s: float) -> tuple[Effect, ...]:
        """Compare what is with what should be. Carrying out the effects leaves nothing to plan at the same instant."""
        if self.state.closed:
            return ()
        effects = [*self._retire(now_s), *self._start_for_waiters(now_s), *self._start_spares(now_s)]
        self._forget_pools(now_s)
        return tuple(effects)

    def due_s(self, *, now_s: float) -> float | None:
        """The next instant at which ``plan`` may find something although no event comes; None: never."""
        instants = []
        for pool in self.state.pools.values():
            if pool.closed_until_s > now_s:
                instants.append(pool.closed_until_s)
            if pool.idle or pool.asked_s > float("-inf"):
                instants.append(max(now_s, pool.asked_s + self.config.idle_ttl_s))
            for entry in pool.idle:
                instants += (entry.since_s + self.config.idle_ttl_s, entry.born_s + self.config.lifetime_s)
            instants += [entry.born_s + self.config.lifetime_s for entry in pool.frozen]
        later = [instant for instant in instants if instant > now_s]
        return min(later, default=None)

    def _retire(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for pool in self.state.pools.values():
            kept = self._idle_target(pool, now_s)
            for entry in tuple(pool.idle):
                too_old = now_s - entry.born_s >= self.config.lifetime_s
                spare = len(pool.idle) > kept and now_s - entry.since_s >= self.config.idle_ttl_s
                if too_old:
                    pool.idle.remove(entry)
                    effects.append(self._stop(pool, entry, "lifetime", now_s))
                elif spare:
                    pool.idle.remove(entry)
                    effects.append(self._put_away(pool, entry, "idle", now_s))
        parked = self.state.parked
        while parked > self.config.parked_max:
            pool = self.state.with_oldest_idle()
            effects.append(self._put_away(pool, pool.idle.popleft(), "parked_max", now_s))
            parked -= 1
        return [*effects, *self._forget_frozen(now_s)]

    def _put_away(self, pool: Pool, entry: Entry, why: str, now_s: float) -> Effect:
        """Freeze an idle entry where that can be, else stop it."""
        if entry.key.runtime not in self._can_freeze:
            return self._stop(pool, entry, why, now_s)
        entry.phase, entry.since_s = Phase.FREEZING, now_s
        pool.freezing += 1
        return Freeze(entry.id)

    def _forget_frozen(self, now_s: float) -> list[Effect]:
        """Those that are too old, and beyond ``frozen_max`` those that were frozen for longest, over all keys."""
        effects: list[Effect] = []
        for pool in self.state.pools.values():
            for entry in tuple(pool.frozen):
                if now_s - entry.born_s >= self.config.lifetime_s:
                    pool.frozen.remove(entry)
                    effects.append(Forget(entry.id, "lifetime"))
        for _ in range(self.state.frozen - self.config.frozen_max):
            effects.append(Forget(self.state.with_oldest_frozen().frozen.popleft().id, "frozen_max"))
        return effects

    def _start_for_waiters(self, now_s: float) -> list[Effect]:
        """Cold starts for those who wait, the longest waiting first, over all keys."""
        effects: list[Effect] = []
        coming = {key: pool.starting + pool.resetting for key, pool in self.state.pools.items() if pool.waiting}
        promised: dict[str, int] = {}
        for waiter in tuple(self.state.waiting.values()):
            tenant, pool = waiter.key.tenant, self.state.pools[waiter.key]
            promised[tenant] = promised.get(tenant, 0) + 1
            if self.state.tenant_busy.get(tenant, 0) + promised[tenant] > self.config.tenant_max:
                continue  # he waits for his own tenant
            if coming[waiter.key] > 0:
                coming[waiter.key] -= 1
                continue
            if pool.closed_until_s > now_s or pool.total >= self.config.max:
                continue
            if self.state.starting >= self.config.starting_max or (pool.failures and pool.starting):
                continue  # after a failure one start at a time feels its way
            if len(self.state.entries) >= self.config.sandboxes_max:
                if self.state.parked == 0:
                    continue
                if not any(entry.phase in (Phase.STOPPING, Phase.FREEZING) for entry in self.state.entries.values()):
                    effects.append(self._evict_oldest("room for another pool", now_s))
                continue  # his start follows when the evicted one is gone
            effects.append(self._start(waiter.key, pool, now_s))
        return effects

    def _start_spares(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        parked = self.state.parked
        for key, pool in self.state.pools.items():
            feeling = pool.failures > 0  # after a failure one start at a time feels its way
            if pool.waiting or pool.closed_until_s > now_s or (feeling and pool.starting):
                continue
            missing = self._idle_target(pool, now_s) - len(pool.idle) - pool.starting - pool.resetting
            room = min(
                self.config.max - pool.total,
                self.config.sandboxes_max - len(self.state.entries),
                self.config.starting_max - self.state.starting,
                self.config.parked_max - parked - self.state.coming,
            )
            count = min(missing, room, 1) if feeling else min(missing, room)
            effects += [self._start(key, pool, now_s) for _ in range(count)]
        return effects

    def _idle_target(self, pool: Pool, now_s: float) -> int:
        wanted = now_s - pool.asked_s < self.config.idle_ttl_s
        warm = self.config.warm if wanted or pool.pinned else 0
        least = self.config.min - pool.busy if pool.pinned else 0
        return min(max(warm, least, 0), self.config.parked_max)

    def _forget_pools(self, now_s: float) -> None:
        """A key that nobody asked for and that has nothing is forgotten, so that keys cannot pile up."""
        for key, pool in tuple(self.state.pools.items()):
            unused = not (pool.total or pool.frozen or pool.waiting or pool.pinned)
            if unused and now_s - pool.asked_s >= self.config.idle_ttl_s and pool.closed_until_s <= now_s:
                del self.state.pools[key]

    # ---- small steps ----

    def _pool(self, key: PoolKey) -> Pool:
        pool = self.state.pools.get(key)
        if pool is None:
            pool = self.state.pools[key] = Pool()
        return pool

    def _why_cold(self, pool: Pool, *, known: bool, tenant: str) -> Cold:
        if pool.total >= self.config.max or len(self.state.entries) >= self.config.sandboxes_max:
            return Cold.FULL
        if not self.state.may_take(tenant):
            return Cold.FULL
        if pool.starting:
            return Cold.STARTING
        if pool.busy or pool.resetting:
            return Cold.BUSY
        if pool.frozen or pool.freezing:
            return Cold.FROZEN
        return Cold.EXPIRED if known else Cold.FIRST

    def _start(self, key: PoolKey, pool: Pool, now_s: float) -> Start:
        """Go on from a frozen entry of this key when there is one; else start anew."""
        entry = Entry(self._new_id(), key, Phase.STARTING, now_s)
        thaw = pool.frozen.pop() if pool.frozen else None
        if thaw is not None:
            entry.thawed, entry.born_s, entry.uses = True, thaw.born_s, thaw.uses
        self.state.entries[entry.id] = entry
        pool.starting += 1
        self.state.starting += 1
        return Start(entry.id, key, thaw.id if thaw is not None else "")

    def _stop(self, pool: Pool, entry: Entry, why: str, now_s: float) -> Stop:
        entry.phase, entry.since_s = Phase.STOPPING, now_s
        pool.stopping += 1
        return Stop(entry.id, why)

    def _evict_oldest(self, why: str, now_s: float) -> Stop:
        pool = self.state.with_oldest_idle()
        return self._stop(pool, pool.idle.popleft(), why, now_s)

    def _make_idle(self, pool: Pool, entry: Entry, now_s: float) -> tuple[Effect, ...]:
        entry.phase, entry.since_s = Phase.IDLE, now_s
        pool.idle.append(entry)
        return self._serve_tenant(entry.key.tenant, now_s)

    def _serve_tenant(self, tenant: str, now_s: float) -> tuple[Effect, ...]:
        """Give idle entries to those of this tenant who wait, the longest waiting first."""
        effects: list[Effect] = []
        if not self.state.waiting:
            return ()
        for waiter in tuple(self.state.waiting.values()):
            if not self.state.may_take(tenant):
                break
            pool = self.state.pools[waiter.key]
            if waiter.key.tenant == tenant and pool.idle:
                pool.waiting.popleft()
                del self.state.waiting[waiter.ticket]
                effects.append(self._hand_out(pool, waiter.ticket, waiter.cold, now_s))
        return tuple(effects)

    def _hand_out(self, pool: Pool, ticket: int, cold: Cold | None, now_s: float) -> HandOut:
        entry = pool.idle.pop()
        entry.phase, entry.since_s, entry.ticket = Phase.BUSY, now_s, ticket
        entry.uses += 1
        pool.busy += 1
        tenant = entry.key.tenant
        self.state.tenant_busy[tenant] = self.state.tenant_busy.get(tenant, 0) + 1
        return HandOut(ticket, entry.id, cold, entry.uses > 1)

    def _give_back(self, pool: Pool, entry: Entry) -> None:
        pool.busy -= 1
        left = self.state.tenant_busy[entry.key.tenant] - 1
        if left:
            self.state.tenant_busy[entry.key.tenant] = left
        else:
            del self.state.tenant_busy[entry.key.tenant]

    def _refuse_all(self, pool: Pool, kind: RefusalKind, cause: Exception | None) -> tuple[Effect, ...]:
        waiters, pool.waiting = tuple(pool.waiting), deque()
        for waiter in waiters:
            del self.state.waiting[waiter.ticket]
        return tuple(Refuse(waiter.ticket, kind, cause) for waiter in waiters)
