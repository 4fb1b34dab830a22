"""The places of a worker's door. Runs on a virtual clock."""

import asyncio

import pytest

from corral.doors.worker.places import IDLE_AFTER_S, Places
from corral.kernel.errors import PoolExhausted

pytestmark = pytest.mark.looptime


async def test_one_more_than_there_are_places_is_refused() -> None:
    places = Places(2, "wrk_a")
    with places.hold(), places.hold():
        with pytest.raises(PoolExhausted, match="all 2 places for clients on wrk_a are taken"), places.hold():
            pass
        assert places.busy == 2
    with places.hold():
        assert places.busy == 1


async def test_who_counts_places_hears_once_when_all_have_been_free_for_a_while() -> None:
    told: list[float] = []
    loop = asyncio.get_running_loop()
    places = Places(2, "wrk_a", on_idle=lambda: told.append(loop.time()))
    with places.hold(), places.hold():
        await asyncio.sleep(10)
    ended_s = loop.time()

    await asyncio.sleep(10)

    assert told == [pytest.approx(ended_s + IDLE_AFTER_S, abs=0.01)]


async def test_a_build_that_compiles_one_after_another_is_told_of_at_its_end_only() -> None:
    told: list[float] = []
    places = Places(2, "wrk_a", on_idle=lambda: told.append(0.0))
    for _ in range(20):
        with places.hold():
            await asyncio.sleep(0.2)
        await asyncio.sleep(IDLE_AFTER_S / 2)
    assert told == []

    await asyncio.sleep(2 * IDLE_AFTER_S)
    assert len(told) == 1
