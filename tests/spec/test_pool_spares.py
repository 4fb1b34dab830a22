"""Spare sandboxes: who is served leaves a new spare behind, within every bound. Pure, no sandbox."""

from itertools import count

from corral.sandboxes.machine import PoolMachine
from corral.sandboxes.pool_model import Asked, Effect, HandOut, PoolConfig, PoolKey, Start, Started

KEY = PoolKey("ann")


def machine(config: PoolConfig) -> PoolMachine:
    numbers = count(1)
    return PoolMachine(config, lambda: f"sbx_{next(numbers)}")


def served(pools: PoolMachine, tickets: range) -> int:
    """Everybody asks, and all that starts comes up at once: how many are served."""
    done: list[Effect] = [effect for ticket in tickets for effect in pools.step(Asked(ticket, KEY), now_s=0.0)]
    while starts := [effect for effect in pools.plan(now_s=0.0) if isinstance(effect, Start)]:
        for start in starts:
            done += pools.step(Started(start.id), now_s=0.0)
    return sum(isinstance(effect, HandOut) for effect in done)


def test_busy_sandboxes_are_no_spares() -> None:
    pools = machine(PoolConfig(warm=2, max=16, tenant_max=16))

    assert served(pools, range(5)) == 5

    (counts,) = pools.state.counts(now_s=0.0)
    assert (counts.busy, counts.idle) == (5, 2)


def test_spares_take_no_more_than_the_bound_of_the_pool() -> None:
    pools = machine(PoolConfig(warm=4, max=6, tenant_max=16))

    assert served(pools, range(5)) == 5

    (counts,) = pools.state.counts(now_s=0.0)
    assert (counts.busy, counts.idle) == (5, 1)


def test_one_tenant_holds_no_more_than_its_bound_although_there_is_room() -> None:
    pools = machine(PoolConfig(warm=1, max=16, tenant_max=3))

    assert served(pools, range(5)) == 3

    (counts,) = pools.state.counts(now_s=0.0)
    assert counts.busy == 3
