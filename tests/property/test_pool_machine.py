"""The pools under a hostile world: starts fail, sandboxes die, releases repeat, callers leave, time jumps."""

import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.machine import PoolMachine
from corral.sandboxes.pool_model import (
    Asked,
    Closed,
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

T = TypeVar("T")
TENANTS = ("ann", "bob")
FREEZES = "gvisor"
KEYS = [PoolKey(tenant, root=root) for tenant in TENANTS for root in ("", "/images/gcc")]
KEYS += [PoolKey(tenant, runtime=FREEZES) for tenant in TENANTS]
CONFIG = PoolConfig(
    min=1,
    warm=1,
    max=3,
    tenant_max=2,
    sandboxes_max=6,
    parked_max=3,
    frozen_max=2,
    starting_max=2,
    idle_ttl_s=30,
    lifetime_s=100,
    waiting_max=5,
    breaker_failures=2,
    breaker_backoff_s=2,
    breaker_backoff_max_s=8,
)


ANY = st.integers(min_value=0, max_value=999)


def pick(things: Sequence[T], n: int) -> T:
    return things[n % len(things)]


class World(RuleBasedStateMachine):
    """Carries effects out in any order, or never, and remembers what each sandbox and each caller has been told."""

    def __init__(self) -> None:
        super().__init__()
        numbers = count(1)
        self.machine = PoolMachine(CONFIG, lambda: f"sbx_{next(numbers)}", freezing=[FREEZES])
        self.now_s = 0.0
        self.tickets = count(1)
        self.asked: dict[int, PoolKey] = {}  # waiting callers
        self.holding: dict[int, str] = {}  # ticket → sandbox
        self.past: list[tuple[str, int]] = []  # leases that are over
        self.keys: dict[str, PoolKey] = {}  # every sandbox that exists for the world
        self.starting: set[str] = set()
        self.resetting: set[str] = set()
        self.stopping: set[str] = set()
        self.freezing: set[str] = set()
        self.frozen: dict[str, PoolKey] = {}  # every snapshot that exists for the world
        self.thawing: set[str] = set()  # starting ones that go on from a snapshot
        self.soiled: set[str] = set()

    def tell(self, event: Event) -> None:
        self.carry_out(self.machine.step(event, now_s=self.now_s))

    def carry_out(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Start():
                    assert effect.id not in self.keys
                    self.keys[effect.id] = effect.key
                    self.starting.add(effect.id)
                    if effect.thaw:
                        assert self.frozen.pop(effect.thaw) == effect.key, "a snapshot of another key"
                        self.thawing.add(effect.id)
                case Freeze():
                    assert self.keys[effect.id].runtime == FREEZES, "this runtime cannot freeze"
                    assert effect.id not in {*self.holding.values()} | self.stopping | self.resetting, "it is not idle"
                    assert effect.id not in self.soiled, "a soiled sandbox is being kept"
                    self.freezing.add(effect.id)
                case Forget():
                    del self.frozen[effect.id]
                case Stop():
                    assert effect.id not in self.stopping, "stopped twice"
                    assert effect.id not in self.holding.values() or effect.why in ("died", "closing"), (
                        "a busy sandbox was stopped"
                    )
                    self.stopping.add(effect.id)
                case Reset():
                    assert effect.id not in self.soiled, "a soiled sandbox is being kept"
                    self.resetting.add(effect.id)
                case HandOut():
                    self.hand_out(effect)
                case Refuse():
                    assert self.asked.pop(effect.ticket, None) is not None

    def hand_out(self, effect: HandOut) -> None:
        key = self.asked.pop(effect.ticket)
        assert self.keys[effect.id] == key, "a sandbox of another key, perhaps of another tenant"
        assert effect.id not in self.holding.values(), "handed out twice"
        assert effect.id not in self.soiled, "a soiled sandbox was handed out"
        unready = self.starting | self.resetting | self.stopping | self.freezing
        assert effect.id not in unready, "it was not ready"
        self.holding[effect.ticket] = effect.id

    # ---- what callers do ----

    @rule(key=st.sampled_from(KEYS))
    def ask(self, key: PoolKey) -> None:
        ticket = next(self.tickets)
        self.asked[ticket] = key
        self.tell(Asked(ticket, key))

    @precondition(lambda self: self.asked)
    @rule(n=ANY)
    def give_up(self, n: int) -> None:
        ticket = pick(sorted(self.asked), n)
        del self.asked[ticket]
        self.tell(GaveUp(ticket))

    @precondition(lambda self: self.holding)
    @rule(n=ANY, soiled=st.booleans())
    def release(self, n: int, soiled: bool) -> None:
        ticket = pick(sorted(self.holding), n)
        sandbox = self.holding.pop(ticket)
        if soiled:
            self.soiled.add(sandbox)
        self.past.append((sandbox, ticket))
        self.tell(Released(sandbox, ticket, soiled))

    @precondition(lambda self: self.past)
    @rule(n=ANY)
    def release_again(self, n: int) -> None:
        in_other_hands = [lease for lease in self.past if lease[0] in self.holding.values()]
        sandbox, ticket = pick(in_other_hands or self.past, n)
        assert self.machine.step(Released(sandbox, ticket, soiled=True), now_s=self.now_s) == ()

    @rule(key=st.sampled_from(KEYS), keep=st.booleans())
    def pin(self, key: PoolKey, keep: bool) -> None:
        self.tell(Pinned(key, keep))

    # ---- what sandboxes do ----

    @precondition(lambda self: self.starting)
    @rule(n=ANY, outcome=st.sampled_from(["up", "up", "fails", "hopeless"]))
    def start_ends(self, n: int, outcome: str) -> None:
        sandbox = pick(sorted(self.starting), n)
        self.starting.remove(sandbox)
        thaws = sandbox in self.thawing
        self.thawing.discard(sandbox)
        if outcome == "up":
            self.tell(Started(sandbox))
        elif thaws:
            waiting = len(self.asked)
            self.forget(sandbox)
            self.tell(StartFailed(sandbox, SandboxFailed("no"), hopeless=outcome == "hopeless"))
            assert len(self.asked) == waiting, "a snapshot that does not thaw is nobody's failure"
        else:
            self.forget(sandbox)
            self.tell(StartFailed(sandbox, SandboxFailed("no"), hopeless=outcome == "hopeless"))

    @precondition(lambda self: self.resetting)
    @rule(n=ANY, clean=st.sampled_from([True, True, False]))
    def reset_ends(self, n: int, clean: bool) -> None:
        sandbox = pick(sorted(self.resetting), n)
        self.resetting.remove(sandbox)
        self.tell(ResetDone(sandbox, clean))

    @precondition(lambda self: self.freezing)
    @rule(n=ANY, frozen=st.sampled_from([True, True, False]))
    def freeze_ends(self, n: int, frozen: bool) -> None:
        sandbox = pick(sorted(self.freezing), n)
        key = self.keys[sandbox]
        self.forget(sandbox)
        if frozen:
            self.frozen[sandbox] = key
        self.tell(Frozen(sandbox) if frozen else Stopped(sandbox))

    @precondition(lambda self: set(self.keys) - self.starting)
    @rule(n=ANY)
    def dies(self, n: int) -> None:
        sandbox = pick(sorted(set(self.keys) - self.starting), n)
        self.soiled.add(sandbox)
        self.tell(Died(sandbox))

    @precondition(lambda self: self.stopping)
    @rule(n=ANY)
    def stop_ends(self, n: int) -> None:
        sandbox = pick(sorted(self.stopping), n)
        self.forget(sandbox)
        self.tell(Stopped(sandbox))

    def forget(self, sandbox: str) -> None:
        del self.keys[sandbox]
        for those in (self.starting, self.resetting, self.stopping, self.freezing, self.thawing):
            those.discard(sandbox)

    @rule()
    def all_goes_well(self) -> None:
        self.plan()
        for sandbox in sorted(self.starting):
            self.starting.remove(sandbox)
            self.tell(Started(sandbox))
        for sandbox in sorted(self.resetting):
            self.resetting.remove(sandbox)
            self.tell(ResetDone(sandbox, clean=True))
        for sandbox in sorted(self.freezing - self.stopping):
            key = self.keys[sandbox]
            self.forget(sandbox)
            self.frozen[sandbox] = key
            self.tell(Frozen(sandbox))

    # ---- time ----

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 31.0, 101.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.plan()

    @rule()
    def plan(self) -> None:
        self.carry_out(self.machine.plan(now_s=self.now_s))
        again = self.machine.plan(now_s=self.now_s)
        assert again == (), f"a carried-out plan left {again}"
        assert len(self.frozen) <= CONFIG.frozen_max, "more are frozen than frozen_max"

    def teardown(self) -> None:
        """Liveness: once the world is kind, everybody who waits is served or told, and closing frees every slot."""
        for _ in range(200):
            if not (self.asked or self.starting or self.resetting or self.stopping or self.freezing):
                break
            self.kind_round()
        assert not self.asked, f"{self.asked} wait for ever"
        self.tell(Closed())
        for sandbox in tuple(self.stopping):
            self.forget(sandbox)
            self.tell(Stopped(sandbox))
        assert not self.machine.state.entries, "a slot was lost"
        assert not self.frozen, "a snapshot was lost"
        self.machine.state.check()

    def kind_round(self) -> None:
        for ticket, sandbox in tuple(self.holding.items()):
            del self.holding[ticket]
            self.tell(Released(sandbox, ticket, sandbox in self.soiled))
        self.all_goes_well()
        for sandbox in tuple(self.stopping):
            self.forget(sandbox)
            self.tell(Stopped(sandbox))
        self.plan()
        if not (self.starting or self.resetting or self.stopping or self.freezing):
            self.now_s += CONFIG.breaker_backoff_max_s + 1

    @invariant()
    def nothing_is_lost_or_shared(self) -> None:
        self.machine.state.check()
        entries = self.machine.state.entries
        assert set(entries) == set(self.keys), "the machine and the world disagree about what exists"
        frozen = {entry.id for pool in self.machine.state.pools.values() for entry in pool.frozen}
        assert frozen == set(self.frozen), "the machine and the world disagree about what is frozen"
        held = {sandbox for sandbox, entry in entries.items() if entry.phase is Phase.BUSY}
        assert held <= set(self.holding.values()), "a slot is busy for nobody"


World.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=100, stateful_step_count=50)
TestPools = World.TestCase


def random_step(world: World, rng: random.Random) -> None:
    """One step of a long life, in which most things go well and every possible thing happens."""
    n = rng.randrange(1000)
    existing = set(world.keys) - world.starting
    steps: list[tuple[int, bool, Callable[[], None]]] = [(8, True, lambda: world.ask(pick(KEYS, n)))]
    steps += [(4, True, world.all_goes_well), (4, True, world.plan)]
    steps += [(1, True, lambda: world.time_passes(rng.choice([0.0, 0.5, 5.0, 31.0, 101.0])))]
    steps += [(1, True, lambda: world.pin(pick(KEYS, n), rng.random() < 0.5))]
    steps += [(1, bool(world.asked), lambda: world.give_up(n))]
    steps += [(6, bool(world.holding), lambda: world.release(n, rng.random() < 0.2))]
    steps += [(3, bool(world.past), lambda: world.release_again(n))]
    steps += [(2, bool(world.starting), lambda: world.start_ends(n, rng.choice(["up", "up", "fails", "hopeless"])))]
    steps += [(2, bool(world.resetting), lambda: world.reset_ends(n, rng.random() < 0.7))]
    steps += [(1, bool(existing), lambda: world.dies(n))]
    steps += [(3, bool(world.freezing), lambda: world.freeze_ends(n, rng.random() < 0.7))]
    steps += [(4, bool(world.stopping), lambda: world.stop_ends(n))]
    possible = [(weight, step) for weight, possible, step in steps if possible]
    (_, chosen) = rng.choices(possible, weights=[weight for weight, _ in possible])[0]
    chosen()


def test_a_long_life_loses_nothing() -> None:
    for seed in range(10):
        world, rng = World(), random.Random(seed)

        for _ in range(1500):
            random_step(world, rng)
            world.nothing_is_lost_or_shared()

        world.teardown()
