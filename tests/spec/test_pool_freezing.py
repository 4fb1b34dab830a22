"""Idle sandboxes are frozen where their runtime can, and whoever asks next goes on from there. Pure, no sandbox."""

from itertools import count

from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes.machine import PoolMachine
from corral.sandboxes.pool_model import (
    Asked,
    Closed,
    Cold,
    Effect,
    Forget,
    Freeze,
    Frozen,
    HandOut,
    PoolConfig,
    PoolKey,
    Released,
    ResetDone,
    Start,
    Started,
    StartFailed,
    Stop,
    Stopped,
)

CONFIG = PoolConfig(warm=0, max=1, sandboxes_max=2, frozen_max=1, idle_ttl_s=10, lifetime_s=100)
ANN = PoolKey("ann", runtime="gvisor")
BOB = PoolKey("bob", runtime="gvisor")
PLAIN = PoolKey("ann", runtime="bubblewrap")
LATER_S = 11.0


def machine(config: PoolConfig = CONFIG) -> PoolMachine:
    numbers = count(1)
    return PoolMachine(config, lambda: f"sbx_{next(numbers)}", freezing=["gvisor"])


def ask(pools: PoolMachine, ticket: int, key: PoolKey, *, now_s: float) -> tuple[Effect, ...]:
    return pools.step(Asked(ticket, key), now_s=now_s) + pools.plan(now_s=now_s)


def used_once(pools: PoolMachine, key: PoolKey, *, ticket: int = 1, now_s: float = 0.0) -> str:
    """A sandbox that somebody has used and given back."""
    (start,) = ask(pools, ticket, key, now_s=now_s)
    assert isinstance(start, Start)
    pools.step(Started(start.id), now_s=now_s)
    pools.step(Released(start.id, ticket, soiled=False), now_s=now_s)
    pools.step(ResetDone(start.id, clean=True), now_s=now_s)
    return start.id


def frozen(pools: PoolMachine, key: PoolKey, *, ticket: int = 1, now_s: float = 0.0) -> str:
    sandbox = used_once(pools, key, ticket=ticket, now_s=now_s)
    assert pools.plan(now_s=now_s + LATER_S) == (Freeze(sandbox),)
    pools.step(Frozen(sandbox), now_s=now_s + LATER_S)
    return sandbox


def test_an_idle_sandbox_is_frozen_where_its_runtime_can_and_stopped_where_it_cannot() -> None:
    for key, freezes in ((ANN, True), (PLAIN, False)):
        pools = machine()
        sandbox = used_once(pools, key)

        assert pools.plan(now_s=9.0) == ()
        assert pools.plan(now_s=LATER_S) == ((Freeze(sandbox),) if freezes else (Stop(sandbox, "idle"),))


def test_nothing_is_frozen_when_nothing_frozen_may_be_kept() -> None:
    pools = machine(PoolConfig(warm=0, frozen_max=0, idle_ttl_s=10))
    sandbox = used_once(pools, ANN)

    assert pools.plan(now_s=LATER_S) == (Stop(sandbox, "idle"),)


def test_whoever_asks_goes_on_from_the_frozen_one_and_is_told_why_it_took_a_moment() -> None:
    pools = machine()
    old = frozen(pools, ANN)

    (start,) = ask(pools, 2, ANN, now_s=20.0)
    handed = pools.step(Started(start.id), now_s=20.5) if isinstance(start, Start) else ()

    assert start == Start("sbx_2", ANN, thaw=old)
    assert handed == (HandOut(2, "sbx_2", Cold.FROZEN, reused=True),)
    assert not pools.state.frozen


def test_a_snapshot_that_does_not_thaw_costs_a_cold_start_and_nobody_an_error() -> None:
    for error in (SandboxFailed("the disk is broken"), InvalidSpec("another kernel")):
        pools = machine()
        frozen(pools, ANN)
        (thawing,) = ask(pools, 2, ANN, now_s=20.0)
        assert isinstance(thawing, Start)

        told = pools.step(StartFailed(thawing.id, error, hopeless=isinstance(error, InvalidSpec)), now_s=20.0)

        assert told == ()
        assert pools.plan(now_s=20.0) == (Start("sbx_3", ANN),)


def test_another_tenant_never_goes_on_from_it() -> None:
    pools = machine()
    frozen(pools, ANN)

    assert ask(pools, 2, BOB, now_s=20.0) == (Start("sbx_2", BOB),)


def test_what_is_frozen_takes_no_place_of_a_running_one() -> None:
    pools = machine(PoolConfig(warm=0, max=1, sandboxes_max=1, frozen_max=1, idle_ttl_s=10))
    frozen(pools, ANN)

    assert ask(pools, 2, PLAIN, now_s=20.0) == (Start("sbx_2", PLAIN),)


def test_beyond_its_bound_the_one_frozen_for_longest_is_forgotten() -> None:
    pools = machine()
    first = frozen(pools, ANN)
    frozen(pools, BOB, ticket=2, now_s=20.0)

    assert pools.plan(now_s=32.0) == (Forget(first, "frozen_max"),)


def test_frost_does_not_lengthen_a_life() -> None:
    pools = machine()
    old = frozen(pools, ANN)

    assert pools.due_s(now_s=LATER_S) == 100.0
    assert pools.plan(now_s=100.0) == (Forget(old, "lifetime"),)
    pools = machine()
    frozen(pools, ANN)
    (start,) = ask(pools, 2, ANN, now_s=99.0)
    assert isinstance(start, Start)
    pools.step(Started(start.id), now_s=99.0)
    assert pools.step(Released(start.id, 2, soiled=False), now_s=101.0) == (Stop(start.id, "lifetime"),)


def test_one_that_cannot_be_frozen_is_gone() -> None:
    pools = machine()
    sandbox = used_once(pools, ANN)
    pools.plan(now_s=LATER_S)

    assert pools.step(Stopped(sandbox), now_s=LATER_S) == ()
    assert not pools.state.entries
    assert ask(pools, 2, ANN, now_s=12.0) == (Start("sbx_2", ANN),)


def test_closing_forgets_what_is_frozen_and_what_is_just_being_frozen() -> None:
    pools = machine()
    old = frozen(pools, ANN)
    freezing = used_once(pools, BOB, ticket=2, now_s=12.0)
    assert pools.plan(now_s=12.0 + LATER_S) == (Freeze(freezing),)

    closing = pools.step(Closed(), now_s=30.0)
    late = pools.step(Frozen(freezing), now_s=31.0)

    assert set(closing) == {Forget(old, "closing"), Stop(freezing, "closing")}
    assert late == (Forget(freezing, "closing"),)
    assert not pools.state.entries
