"""What schedulers on one database see of each other."""

import pytest

from corral.functions.adapters.homes import MemoryHomeStore
from corral.functions.homes import Homes, Settled
from corral.functions.model import FunctionKey, RevisionKey, Scale
from corral.functions.routing import Backend
from corral.functions.scaling import without
from corral.testing.clocks import HandClock

KEY = RevisionKey(FunctionKey("default", "hello"), "v1", "0" * 16)


def settled(instance: str) -> Settled:
    return Settled(key=KEY, backend=Backend(instance=instance, worker="w", address="unix:x@10.0.0.1:7080"))


@pytest.fixture
def watch() -> HandClock:
    return HandClock(1000.0)


@pytest.fixture
def store() -> MemoryHomeStore:
    return MemoryHomeStore()


async def test_each_counts_those_before_it_and_routes_to_all_others(store: MemoryHomeStore, watch: HandClock) -> None:
    a, b, c = (Homes(store, name, watch, expires_s=5.0) for name in "abc")
    for home, instances in ((a, ["a1"]), (b, ["b1", "b2"]), (c, [])):
        await home.exchange(settled(each) for each in instances)
    assert await a.exchange([settled("a1")]) == {KEY.function}
    await b.exchange([settled("b1"), settled("b2")])

    assert [each.before(KEY) for each in (a, b, c)] == [0, 1, 3]
    assert [each.instance for each in a.backends(KEY)] == ["b1", "b2"]
    assert [each.instance for each in b.backends(KEY)] == ["a1"]
    assert [each.instance for each in c.backends(KEY)] == ["a1", "b1", "b2"]
    assert await a.exchange([settled("a1")]) == frozenset(), "nothing is news twice"


async def test_one_that_publishes_no_more_is_gone_whatever_its_clock_says(
    store: MemoryHomeStore, watch: HandClock
) -> None:
    a, b = Homes(store, "a", watch, expires_s=5.0), Homes(store, "b", watch, expires_s=5.0)
    await a.exchange([settled("a1")])
    await b.exchange([])
    assert b.before(KEY) == 1

    watch.at_s += 4.0
    await b.exchange([])
    assert b.before(KEY) == 1
    watch.at_s += 2.0
    assert await b.exchange([]) == {KEY.function}
    assert (b.before(KEY), b.backends(KEY)) == (0, ())
    watch.at_s += 50.0
    await b.exchange([])
    assert set(store.published) == {"b"}


async def test_one_that_leaves_is_gone_at_once(store: MemoryHomeStore, watch: HandClock) -> None:
    a, b = Homes(store, "a", watch, expires_s=5.0), Homes(store, "b", watch, expires_s=5.0)
    await a.exchange([settled("a1")])
    await b.exchange([])

    await a.leave()
    await b.exchange([])

    assert b.before(KEY) == 0


def test_what_others_have_is_taken_off_the_least_and_the_most() -> None:
    scale = Scale(min=2, max=5)

    assert without(scale, 0) is scale
    assert (without(scale, 3).min, without(scale, 3).max) == (0, 2)
    assert (without(scale, 9).min, without(scale, 9).max) == (0, 0)
