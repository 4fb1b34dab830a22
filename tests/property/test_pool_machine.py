"""The pools under a hostile world: starts fail, sandboxes die, releases repeat, callers leave, time jumps."""

from itertools import count

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

TENANTS = ("ann", "bob")
KEYS = [PoolKey(tenant, root=root) for tenant in TENANTS for root in ("", "/images/gcc")]
CONFIG = PoolConfig(
    min=1,
    warm=1,
    max=3,
    tenant_max=4,
    sandboxes_max=6,
    parked_max=3,
    starting_max=2,
    idle_ttl_s=30,
    lifetime_s=100,
    waiting_max=5,
    breaker_failures=2,
    breaker_backoff_s=2,
    breaker_backoff_max_s=8,
)


class World(RuleBasedStateMachine):
    """Carries effects out in any order, or never, and remembers what each sandbox and each caller has been told."""

    def __init__(self) -> None:
        super().__init__()
        numbers = count(1)
        self.machine = PoolMachine(CONFIG, lambda: f"sbx_{next(numbers)}")
        self.now_s = 0.0
        self.tickets = count(1)
        self.asked: dict[int, PoolKey] = {}  # waiting callers
        self.holding: dict[int, str] = {}  # ticket → sandbox
        self.past: list[tuple[str, int]] = []  # leases that are over
        self.keys: dict[str, PoolKey] = {}  # every sandbox that exists for the world
        self.starting: set[str] = set()
        self.resetting: set[str] = set()
        self.stopping: set[str] = set()
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
        assert not {effect.id} & (self.starting | self.resetting | self.stopping), "it was not ready"
        self.holding[effect.ticket] = effect.id

    # ---- what callers do ----

    @rule(key=st.sampled_from(KEYS))
    def ask(self, key: PoolKey) -> None:
        ticket = next(self.tickets)
        self.asked[ticket] = key
        self.tell(Asked(ticket, key))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.asked)))
        del self.asked[ticket]
        self.tell(GaveUp(ticket))

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), soiled=st.booleans())
    def release(self, data: st.DataObject, soiled: bool) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.holding)))
        sandbox = self.holding.pop(ticket)
        if soiled:
            self.soiled.add(sandbox)
        self.past.append((sandbox, ticket))
        self.tell(Released(sandbox, ticket, soiled))

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def release_again(self, data: st.DataObject) -> None:
        sandbox, ticket = data.draw(st.sampled_from(self.past))
        assert self.machine.step(Released(sandbox, ticket, soiled=True), now_s=self.now_s) == ()

    @rule(key=st.sampled_from(KEYS), keep=st.booleans())
    def pin(self, key: PoolKey, keep: bool) -> None:
        self.tell(Pinned(key, keep))

    # ---- what sandboxes do ----

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), outcome=st.sampled_from(["up", "up", "fails", "hopeless"]))
    def start_ends(self, data: st.DataObject, outcome: str) -> None:
        sandbox = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.remove(sandbox)
        if outcome == "up":
            self.tell(Started(sandbox))
        else:
            self.forget(sandbox)
            self.tell(StartFailed(sandbox, SandboxFailed("no"), hopeless=outcome == "hopeless"))

    @precondition(lambda self: self.resetting)
    @rule(data=st.data(), clean=st.sampled_from([True, True, False]))
    def reset_ends(self, data: st.DataObject, clean: bool) -> None:
        sandbox = data.draw(st.sampled_from(sorted(self.resetting)))
        self.resetting.remove(sandbox)
        self.tell(ResetDone(sandbox, clean))

    @precondition(lambda self: set(self.keys) - self.starting)
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        sandbox = data.draw(st.sampled_from(sorted(set(self.keys) - self.starting)))
        self.soiled.add(sandbox)
        self.tell(Died(sandbox))

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def stop_ends(self, data: st.DataObject) -> None:
        sandbox = data.draw(st.sampled_from(sorted(self.stopping)))
        self.forget(sandbox)
        self.tell(Stopped(sandbox))

    def forget(self, sandbox: str) -> None:
        del self.keys[sandbox]
        for those in (self.starting, self.resetting, self.stopping):
            those.discard(sandbox)

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

    def teardown(self) -> None:
        """Liveness: once the world is kind, everybody who waits is served or told, and closing frees every slot."""
        for _ in range(200):
            if not (self.asked or self.starting or self.resetting or self.stopping):
                break
            self.kind_round()
        assert not self.asked, f"{self.asked} wait for ever"
        self.tell(Closed())
        for sandbox in tuple(self.stopping):
            self.forget(sandbox)
            self.tell(Stopped(sandbox))
        assert self.machine.ids() == (), "a slot was lost"
        self.machine.check()

    def kind_round(self) -> None:
        for ticket, sandbox in tuple(self.holding.items()):
            del self.holding[ticket]
            self.tell(Released(sandbox, ticket, sandbox in self.soiled))
        for sandbox in tuple(self.starting):
            self.starting.remove(sandbox)
            self.tell(Started(sandbox))
        for sandbox in tuple(self.resetting):
            self.resetting.remove(sandbox)
            self.tell(ResetDone(sandbox, clean=True))
        for sandbox in tuple(self.stopping):
            self.forget(sandbox)
            self.tell(Stopped(sandbox))
        self.plan()
        if not (self.starting or self.resetting or self.stopping):
            self.now_s += CONFIG.breaker_backoff_max_s + 1

    @invariant()
    def nothing_is_lost_or_shared(self) -> None:
        self.machine.check()
        assert set(self.machine.ids()) == set(self.keys), "the machine and the world disagree about what exists"
        held = {sandbox for sandbox in self.machine.ids() if self.machine.phase_of(sandbox) is Phase.BUSY}
        assert held <= set(self.holding.values()), "a slot is busy for nobody"


World.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=150, stateful_step_count=60)
TestPools = World.TestCase
