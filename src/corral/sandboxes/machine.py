"""The pure life of pools of sandboxes: who gets one, which are started, kept, reset and stopped.

Nothing here does I/O or reads a clock; the shell in ``sandboxes.pool`` carries the effects out and reports back.
Life of one entry::

    STARTING ──Started──► IDLE ──(asked)──► BUSY ──Released──► RESETTING ──ResetDone(clean)──► IDLE
        │                   │                 │ soiled, too old      │ not clean
        └─StartFailed─► (gone)   └────────────┴──────────────────────┴──► STOPPING ──Stopped──► (gone)

An entry counts against every bound from the decision to start it until it is gone, so bounds are bounds on real
processes. A *key* never changes for the life of an entry, and holds the tenant: no entry ever serves two tenants.
``Asked`` with an idle entry at hand is the hot path and costs O(1); everything else happens in ``plan``, which
compares what is with what should be.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from corral.sandboxes.pool_model import (
    Asked,
    Closed,
    Cold,
    Died,
    Effect,
    Event,
    GaveUp,
    HandOut,
    Phase,
    Pinned,
    PoolConfig,
    PoolCount,
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


@dataclass(slots=True)
class _Entry:
    id: str
    key: PoolKey
    phase: Phase
    since_s: float  # start of the present phase
    born_s: float = 0.0
    ticket: int = 0
    uses: int = 0


@dataclass(slots=True)
class _Waiter:
    ticket: int
    key: PoolKey
    cold: Cold


@dataclass(slots=True)
class _Pool:
    """What is known of one key; ``idle`` is oldest first, handed out from the youngest end (its caches are hot)."""

    idle: deque[_Entry] = field(default_factory=deque)
    waiting: deque[_Waiter] = field(default_factory=deque)
    starting: int = 0
    resetting: int = 0
    busy: int = 0
    stopping: int = 0
    pinned: bool = False
    asked_s: float = float("-inf")
    failures: int = 0
    closed_until_s: float = float("-inf")
    failure: Exception | None = None

    @property
    def live(self) -> int:
        return len(self.idle) + self.starting + self.resetting + self.busy

    @property
    def total(self) -> int:
        return self.live + self.stopping


class PoolMachine:
    """All pools of one worker: events in, effects out, no I/O. Not a value: ``step`` and ``plan`` change it in place,
    because copying hundreds of entries for every warm hand-out would cost more than the hand-out.

    ``now_s`` is monotonic time and never goes back.
    """

    def __init__(self, config: PoolConfig, new_id: Callable[[], str]) -> None:
        self.config = config
        self._new_id = new_id
        self._entries: dict[str, _Entry] = {}
        self._pools: dict[PoolKey, _Pool] = {}
        self._waiting: dict[int, _Waiter] = {}
        self._tenant_busy: dict[str, int] = {}
        self._starting = 0
        self._closed = False

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
        if self._closed:
            return (Refuse(event.ticket, RefusalKind.CLOSED),)
        known = event.key in self._pools
        pool = self._pool(event.key)
        if pool.idle and not pool.waiting and self._may_take(event.key.tenant):
            pool.asked_s = now_s
            return (self._hand_out(pool, event.ticket, None, now_s),)
        if pool.closed_until_s > now_s:
            return (Refuse(event.ticket, RefusalKind.START_FAILED, pool.failure),)
        if len(self._waiting) >= self.config.waiting_max:
            return (Refuse(event.ticket, RefusalKind.LINE_FULL),)
        pool.asked_s = now_s
        waiter = _Waiter(event.ticket, event.key, self._why_cold(pool, known=known, tenant=event.key.tenant))
        pool.waiting.append(waiter)
        self._waiting[event.ticket] = waiter
        return ()

    def _gave_up(self, event: GaveUp) -> tuple[Effect, ...]:
        waiter = self._waiting.pop(event.ticket, None)
        if waiter is not None:
            self._pools[waiter.key].waiting.remove(waiter)
        return ()

    def _started(self, event: Started, now_s: float) -> tuple[Effect, ...]:
        entry = self._in_phase(event.id, Phase.STARTING)
        if entry is None:
            return ()
        pool = self._pools[entry.key]
        pool.starting -= 1
        self._starting -= 1
        pool.failures, pool.failure = 0, None
        entry.born_s = now_s
        return self._make_idle(pool, entry, now_s)

    def _start_failed(self, event: StartFailed, now_s: float) -> tuple[Effect, ...]:
        entry = self._entries.get(event.id)
        if entry is None or entry.phase not in (Phase.STARTING, Phase.STOPPING):
            return ()
        if entry.phase is Phase.STOPPING:
            return self._stopped(Stopped(event.id))
        pool = self._pools[entry.key]
        del self._entries[event.id]
        pool.starting -= 1
        self._starting -= 1
        pool.failures += 1
        pool.failure = event.cause
        if not event.hopeless and pool.failures < self.config.breaker_failures:
            return ()
        pause_s = self.config.breaker_backoff_s * 2.0 ** min(32, max(0, pool.failures - self.config.breaker_failures))
        pool.closed_until_s = now_s + min(pause_s, self.config.breaker_backoff_max_s)
        pool.asked_s = float("-inf")  # no spares until somebody asks again
        return self._refuse_all(pool, RefusalKind.START_FAILED, event.cause)

    def _released(self, event: Released, now_s: float) -> tuple[Effect, ...]:
        entry = self._in_phase(event.id, Phase.BUSY)
        if entry is None or entry.ticket != event.ticket:
            return ()
        pool = self._pools[entry.key]
        self._give_back(pool, entry)
        if event.soiled:
            return (self._stop(pool, entry, "soiled", now_s), *self._serve_tenant(entry.key.tenant, now_s))
        if now_s - entry.born_s >= self.config.lifetime_s:
            return (self._stop(pool, entry, "lifetime", now_s), *self._serve_tenant(entry.key.tenant, now_s))
        entry.phase, entry.since_s = Phase.RESETTING, now_s
        pool.resetting += 1
        return (Reset(entry.id), *self._serve_tenant(entry.key.tenant, now_s))

    def _reset_done(self, event: ResetDone, now_s: float) -> tuple[Effect, ...]:
        entry = self._in_phase(event.id, Phase.RESETTING)
        if entry is None:
            return ()
        pool = self._pools[entry.key]
        pool.resetting -= 1
        if not event.clean:
            return (self._stop(pool, entry, "not clean after reset", now_s),)
        return self._make_idle(pool, entry, now_s)

    def _died(self, event: Died, now_s: float) -> tuple[Effect, ...]:
        entry = self._entries.get(event.id)
        if entry is None or entry.phase in (Phase.STOPPING, Phase.STARTING):
            return ()  # a start that dies is reported as StartFailed
        pool = self._pools[entry.key]
        served: tuple[Effect, ...] = ()
        if entry.phase is Phase.IDLE:
            pool.idle.remove(entry)
        elif entry.phase is Phase.RESETTING:
            pool.resetting -= 1
        else:
            self._give_back(pool, entry)
            served = self._serve_tenant(entry.key.tenant, now_s)
        return (self._stop(pool, entry, "died", now_s), *served)

    def _stopped(self, event: Stopped) -> tuple[Effect, ...]:
        entry = self._in_phase(event.id, Phase.STOPPING)
        if entry is not None:
            del self._entries[event.id]
            self._pools[entry.key].stopping -= 1
        return ()

    def _close(self, now_s: float) -> tuple[Effect, ...]:
        self._closed = True
        effects: list[Effect] = []
        for pool in self._pools.values():
            effects += self._refuse_all(pool, RefusalKind.CLOSED, None)
            pool.pinned = False
        for entry in self._entries.values():
            if entry.phase is Phase.STOPPING:
                continue
            pool = self._pools[entry.key]
            if entry.phase is Phase.STARTING:
                pool.starting -= 1
                self._starting -= 1
            elif entry.phase is Phase.IDLE:
                pool.idle.remove(entry)
            elif entry.phase is Phase.RESETTING:
                pool.resetting -= 1
            else:
                self._give_back(pool, entry)
            effects.append(self._stop(pool, entry, "closing", now_s))
        return tuple(effects)

    # ---- what should be ----

    def plan(self, *, now_s: float) -> tuple[Effect, ...]:
        """Compare what is with what should be. Carrying out the effects leaves nothing to plan at the same instant."""
        if self._closed:
            return ()
        effects = [*self._retire(now_s), *self._start_for_waiters(now_s), *self._start_spares(now_s)]
        self._forget_pools(now_s)
        return tuple(effects)

    def due_s(self, *, now_s: float) -> float | None:
        """The next instant at which ``plan`` may find something although no event comes; None: never."""
        instants = []
        for pool in self._pools.values():
            if pool.closed_until_s > now_s:
                instants.append(pool.closed_until_s)
            if pool.idle or pool.asked_s > float("-inf"):
                instants.append(max(now_s, pool.asked_s + self.config.idle_ttl_s))
            for entry in pool.idle:
                instants += (entry.since_s + self.config.idle_ttl_s, entry.born_s + self.config.lifetime_s)
        later = [instant for instant in instants if instant > now_s]
        return min(later, default=None)

    def _retire(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for pool in self._pools.values():
            kept = self._idle_target(pool, now_s)
            for entry in tuple(pool.idle):
                too_old = now_s - entry.born_s >= self.config.lifetime_s
                spare = len(pool.idle) > kept and now_s - entry.since_s >= self.config.idle_ttl_s
                if too_old or spare:
                    pool.idle.remove(entry)
                    effects.append(self._stop(pool, entry, "lifetime" if too_old else "idle", now_s))
        parked = self._parked()
        while parked > self.config.parked_max:
            effects.append(self._evict_oldest("parked_max", now_s))
            parked -= 1
        return effects

    def _start_for_waiters(self, now_s: float) -> list[Effect]:
        """Cold starts for those who wait, the longest waiting first, over all keys."""
        effects: list[Effect] = []
        coming = {key: pool.starting + pool.resetting for key, pool in self._pools.items() if pool.waiting}
        promised: dict[str, int] = {}
        for waiter in tuple(self._waiting.values()):
            tenant, pool = waiter.key.tenant, self._pools[waiter.key]
            promised[tenant] = promised.get(tenant, 0) + 1
            if self._tenant_busy.get(tenant, 0) + promised[tenant] > self.config.tenant_max:
                continue  # he waits for his own tenant
            if coming[waiter.key] > 0:
                coming[waiter.key] -= 1
                continue
            if pool.closed_until_s > now_s or pool.total >= self.config.max:
                continue
            if self._starting >= self.config.starting_max or (pool.failures and pool.starting):
                continue  # after a failure one start at a time feels its way
            if len(self._entries) >= self.config.sandboxes_max:
                if self._parked() == 0:
                    continue
                if not any(entry.phase is Phase.STOPPING for entry in self._entries.values()):
                    effects.append(self._evict_oldest("room for another pool", now_s))
                continue  # his start follows when the evicted one is gone
            effects.append(self._start(waiter.key, pool, now_s))
        return effects

    def _start_spares(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        parked = self._parked()
        for key, pool in self._pools.items():
            feeling = pool.failures > 0  # after a failure one start at a time feels its way
            if pool.waiting or pool.closed_until_s > now_s or (feeling and pool.starting):
                continue
            missing = self._idle_target(pool, now_s) - len(pool.idle) - pool.starting - pool.resetting
            room = min(
                self.config.max - pool.total,
                self.config.sandboxes_max - len(self._entries),
                self.config.starting_max - self._starting,
                self.config.parked_max - parked - self._coming(),
            )
            count = min(missing, room, 1) if feeling else min(missing, room)
            effects += [self._start(key, pool, now_s) for _ in range(count)]
        return effects

    def _idle_target(self, pool: _Pool, now_s: float) -> int:
        wanted = now_s - pool.asked_s < self.config.idle_ttl_s
        warm = self.config.warm if wanted or pool.pinned else 0
        least = self.config.min - pool.busy if pool.pinned else 0
        return min(max(warm, least, 0), self.config.parked_max)

    def _forget_pools(self, now_s: float) -> None:
        """A key that nobody asked for and that has nothing is forgotten, so that keys cannot pile up."""
        for key, pool in tuple(self._pools.items()):
            unused = not (pool.total or pool.waiting or pool.pinned)
            if unused and now_s - pool.asked_s >= self.config.idle_ttl_s and pool.closed_until_s <= now_s:
                del self._pools[key]

    # ---- small steps ----

    def _pool(self, key: PoolKey) -> _Pool:
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool()
        return pool

    def _in_phase(self, sandbox_id: str, phase: Phase) -> _Entry | None:
        entry = self._entries.get(sandbox_id)
        return entry if entry is not None and entry.phase is phase else None

    def _may_take(self, tenant: str) -> bool:
        return self._tenant_busy.get(tenant, 0) < self.config.tenant_max

    def _parked(self) -> int:
        return sum(len(pool.idle) for pool in self._pools.values())

    def _coming(self) -> int:
        return sum(max(0, pool.starting + pool.resetting - len(pool.waiting)) for pool in self._pools.values())

    def _why_cold(self, pool: _Pool, *, known: bool, tenant: str) -> Cold:
        if pool.total >= self.config.max or len(self._entries) >= self.config.sandboxes_max:
            return Cold.FULL
        if not self._may_take(tenant):
            return Cold.FULL
        if pool.starting:
            return Cold.STARTING
        if pool.busy or pool.resetting:
            return Cold.BUSY
        return Cold.EXPIRED if known else Cold.FIRST

    def _start(self, key: PoolKey, pool: _Pool, now_s: float) -> Start:
        sandbox_id = self._new_id()
        self._entries[sandbox_id] = _Entry(sandbox_id, key, Phase.STARTING, now_s)
        pool.starting += 1
        self._starting += 1
        return Start(sandbox_id, key)

    def _stop(self, pool: _Pool, entry: _Entry, why: str, now_s: float) -> Stop:
        entry.phase, entry.since_s = Phase.STOPPING, now_s
        pool.stopping += 1
        return Stop(entry.id, why)

    def _evict_oldest(self, why: str, now_s: float) -> Stop:
        pool = min((pool for pool in self._pools.values() if pool.idle), key=lambda pool: pool.idle[0].since_s)
        return self._stop(pool, pool.idle.popleft(), why, now_s)

    def _make_idle(self, pool: _Pool, entry: _Entry, now_s: float) -> tuple[Effect, ...]:
        entry.phase, entry.since_s = Phase.IDLE, now_s
        pool.idle.append(entry)
        return self._serve_tenant(entry.key.tenant, now_s)

    def _serve_tenant(self, tenant: str, now_s: float) -> tuple[Effect, ...]:
        """Give idle entries to those of this tenant who wait, the longest waiting first."""
        effects: list[Effect] = []
        if not self._waiting:
            return ()
        for waiter in tuple(self._waiting.values()):
            if not self._may_take(tenant):
                break
            pool = self._pools[waiter.key]
            if waiter.key.tenant == tenant and pool.idle:
                pool.waiting.popleft()
                del self._waiting[waiter.ticket]
                effects.append(self._hand_out(pool, waiter.ticket, waiter.cold, now_s))
        return tuple(effects)

    def _hand_out(self, pool: _Pool, ticket: int, cold: Cold | None, now_s: float) -> HandOut:
        entry = pool.idle.pop()
        entry.phase, entry.since_s, entry.ticket = Phase.BUSY, now_s, ticket
        entry.uses += 1
        pool.busy += 1
        tenant = entry.key.tenant
        self._tenant_busy[tenant] = self._tenant_busy.get(tenant, 0) + 1
        return HandOut(ticket, entry.id, cold, entry.uses > 1)

    def _give_back(self, pool: _Pool, entry: _Entry) -> None:
        pool.busy -= 1
        left = self._tenant_busy[entry.key.tenant] - 1
        if left:
            self._tenant_busy[entry.key.tenant] = left
        else:
            del self._tenant_busy[entry.key.tenant]

    def _refuse_all(self, pool: _Pool, kind: RefusalKind, cause: Exception | None) -> tuple[Effect, ...]:
        waiters, pool.waiting = tuple(pool.waiting), deque()
        for waiter in waiters:
            del self._waiting[waiter.ticket]
        return tuple(Refuse(waiter.ticket, kind, cause) for waiter in waiters)

    # ---- what is ----

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def phase_of(self, sandbox_id: str) -> Phase | None:
        """Where an entry is in its life; None when it is gone."""
        entry = self._entries.get(sandbox_id)
        return entry.phase if entry is not None else None

    def ids(self) -> tuple[str, ...]:
        """Every entry that is not gone."""
        return tuple(self._entries)

    def counts(self, *, now_s: float) -> tuple[PoolCount, ...]:
        """The numbers of every key that is known."""
        return tuple(
            PoolCount(
                key=key,
                idle=len(pool.idle),
                busy=pool.busy,
                starting=pool.starting,
                resetting=pool.resetting,
                stopping=pool.stopping,
                waiting=len(pool.waiting),
                breaker_open=pool.closed_until_s > now_s,
            )
            for key, pool in self._pools.items()
        )

    def check(self) -> None:
        """The invariants, for tests: raises AssertionError when one does not hold."""
        by_phase: dict[tuple[PoolKey, Phase], int] = {}
        busy: dict[str, int] = {}
        for entry in self._entries.values():
            by_phase[entry.key, entry.phase] = by_phase.get((entry.key, entry.phase), 0) + 1
            if entry.phase is Phase.BUSY:
                busy[entry.key.tenant] = busy.get(entry.key.tenant, 0) + 1
        for key, pool in self._pools.items():
            counted = {
                Phase.IDLE: len(pool.idle),
                Phase.STARTING: pool.starting,
                Phase.RESETTING: pool.resetting,
                Phase.BUSY: pool.busy,
                Phase.STOPPING: pool.stopping,
            }
            real = {phase: by_phase.pop((key, phase), 0) for phase in counted}
            assert counted == real, f"counts of {key} are {counted}, entries say {real}"
            assert all(entry.key == key for entry in pool.idle), "an idle entry lies in another key's pool"
            assert pool.total <= self.config.max, "a pool is larger than max"
            can_take = busy.get(key.tenant, 0) < self.config.tenant_max
            assert not (pool.idle and pool.waiting and can_take), "somebody waits beside an idle sandbox"
        assert not by_phase, "an entry has no pool"
        assert busy == self._tenant_busy, "a tenant's busy count drifted"
        assert len(self._entries) <= self.config.sandboxes_max, "more sandboxes than sandboxes_max"
        assert all(count <= self.config.tenant_max for count in busy.values()), "a tenant holds more than tenant_max"
        waiting = [waiter for pool in self._pools.values() for waiter in pool.waiting]
        assert len(waiting) == len(self._waiting), "a waiter was lost"
