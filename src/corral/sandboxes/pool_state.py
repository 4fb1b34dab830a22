"""What the pool machine knows: entries by id, numbers by key, who waits; and what must always hold of them."""

from collections import deque
from dataclasses import dataclass, field

from corral.sandboxes.pool_model import Cold, Phase, PoolConfig, PoolCount, PoolKey


@dataclass(slots=True)
class Entry:
    """One sandbox; ``thawed`` when its start goes on from a frozen one."""

    id: str
    key: PoolKey
    phase: Phase
    since_s: float  # start of the present phase
    born_s: float = 0.0
    ticket: int = 0
    uses: int = 0
    thawed: bool = False


@dataclass(slots=True)
class Waiter:
    """Who waits, and why there was nothing at once."""

    ticket: int
    key: PoolKey
    cold: Cold


@dataclass(slots=True)
class Pool:
    """What is known of one key; ``idle`` is oldest first, handed out from the youngest end (its caches are hot), and so
    is ``frozen``."""

    idle: deque[Entry] = field(default_factory=deque)
    frozen: deque[Entry] = field(default_factory=deque)
    waiting: deque[Waiter] = field(default_factory=deque)
    starting: int = 0
    resetting: int = 0
    busy: int = 0
    freezing: int = 0
    stopping: int = 0
    pinned: bool = False
    asked_s: float = float("-inf")
    failures: int = 0
    closed_until_s: float = float("-inf")
    failure: Exception | None = None

    @property
    def total(self) -> int:
        """Those that count against ``max``."""
        return len(self.idle) + self.starting + self.resetting + self.busy + self.freezing + self.stopping


class PoolState:
    """All of it, changed in place by ``machine.PoolMachine``, which alone decides.

    Attributes:
        entries: by id, those that have a process or are about to; frozen ones lie in their pool alone.
        waiting: by ticket, in the order in which they came; each stands in its pool, too.
        tenant_busy: busy entries by tenant; no zeros.
        starting: of all keys.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.entries: dict[str, Entry] = {}
        self.pools: dict[PoolKey, Pool] = {}
        self.waiting: dict[int, Waiter] = {}
        self.tenant_busy: dict[str, int] = {}
        self.starting = 0
        self.closed = False

    def in_phase(self, sandbox_id: str, phase: Phase) -> Entry | None:
        """The entry, when that is where it is."""
        entry = self.entries.get(sandbox_id)
        return entry if entry is not None and entry.phase is phase else None

    def may_take(self, tenant: str) -> bool:
        """Tell whether the tenant may hold one more."""
        return self.tenant_busy.get(tenant, 0) < self.config.tenant_max

    @property
    def parked(self) -> int:
        """Idle ones of all keys."""
        return sum(len(pool.idle) for pool in self.pools.values())

    @property
    def frozen(self) -> int:
        """Frozen ones of all keys."""
        return sum(len(pool.frozen) for pool in self.pools.values())

    @property
    def coming(self) -> int:
        """Those that will be idle soon, and that nobody waits for."""
        return sum(max(0, pool.starting + pool.resetting - len(pool.waiting)) for pool in self.pools.values())

    def with_oldest_idle(self) -> Pool:
        """Whose first idle entry has been idle for longest; there is one."""
        return min((pool for pool in self.pools.values() if pool.idle), key=lambda pool: pool.idle[0].since_s)

    def with_oldest_frozen(self) -> Pool:
        """Whose first frozen entry has been frozen for longest; there is one."""
        return min((pool for pool in self.pools.values() if pool.frozen), key=lambda pool: pool.frozen[0].since_s)

    def counts(self, *, now_s: float) -> tuple[PoolCount, ...]:
        """The numbers of every key that is known."""
        return tuple(
            PoolCount(
                key=key,
                idle=len(pool.idle),
                busy=pool.busy,
                starting=pool.starting,
                resetting=pool.resetting,
                freezing=pool.freezing,
                frozen=len(pool.frozen),
                stopping=pool.stopping,
                waiting=len(pool.waiting),
                breaker_open=pool.closed_until_s > now_s,
            )
            for key, pool in self.pools.items()
        )

    def check(self) -> None:
        """The invariants, for tests: raises AssertionError when one does not hold."""
        by_phase: dict[tuple[PoolKey, Phase], int] = {}
        busy: dict[str, int] = {}
        for entry in self.entries.values():
            by_phase[entry.key, entry.phase] = by_phase.get((entry.key, entry.phase), 0) + 1
            if entry.phase is Phase.BUSY:
                busy[entry.key.tenant] = busy.get(entry.key.tenant, 0) + 1
        for key, pool in self.pools.items():
            counted = {
                Phase.IDLE: len(pool.idle),
                Phase.STARTING: pool.starting,
                Phase.RESETTING: pool.resetting,
                Phase.BUSY: pool.busy,
                Phase.FREEZING: pool.freezing,
                Phase.STOPPING: pool.stopping,
            }
            real = {phase: by_phase.pop((key, phase), 0) for phase in counted}
            assert counted == real, f"counts of {key} are {counted}, entries say {real}"
            assert all(entry.key == key for entry in pool.idle), "an idle entry lies in another key's pool"
            assert all(entry.key == key for entry in pool.frozen), "a frozen entry lies in another key's pool"
            assert pool.total <= self.config.max, "a pool is larger than max"
            can_take = busy.get(key.tenant, 0) < self.config.tenant_max
            assert not (pool.idle and pool.waiting and can_take), "somebody waits beside an idle sandbox"
        assert not by_phase, "an entry has no pool"
        assert busy == self.tenant_busy, "a tenant's busy count drifted"
        assert len(self.entries) <= self.config.sandboxes_max, "more sandboxes than sandboxes_max"
        assert all(count <= self.config.tenant_max for count in busy.values()), "a tenant holds more than tenant_max"
        waiting = [waiter for pool in self.pools.values() for waiter in pool.waiting]
        assert len(waiting) == len(self.waiting), "a waiter was lost"
