"""Action caches against their contract, on both databases; what is evicted is no hit; bounds are kept."""

from collections.abc import AsyncIterator

import pytest

from corral.actions.adapters.memory_cache import RememberedResults
from corral.actions.adapters.sql_cache import SqlActionCache
from corral.actions.limits import ActionLimits
from corral.actions.ports import ActionCache
from corral.blobs.adapters.memory import MemoryBlobs
from corral.database.engine import Database
from corral.kernel.clock import SystemClock
from corral.kernel.digest import Digest
from corral.kernel.errors import TooLarge
from corral.testing.action_cache_contract import ACTION, SHA, ActionCacheContract, result_of, stored_file
from corral.testing.clocks import HandClock


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


class TestSqlActionCache(ActionCacheContract):
    @pytest.fixture
    def cache(self, database: Database, blobs: MemoryBlobs) -> ActionCache:
        return SqlActionCache(database, blobs, SystemClock())


class TestRememberedResults(ActionCacheContract):
    @pytest.fixture
    async def cache(self, sqlite_url: str, blobs: MemoryBlobs) -> AsyncIterator[ActionCache]:
        async with Database.open(sqlite_url) as database:
            inner = SqlActionCache(database, blobs, SystemClock())
            yield RememberedResults(inner, SystemClock(), total_bytes=10_000, fresh_s=20)


async def test_a_hit_implies_that_every_blob_is_there(database: Database, blobs: MemoryBlobs) -> None:
    cache = SqlActionCache(database, blobs, SystemClock())
    outputs = [await stored_file(blobs, content) for content in (b"kept", b"evicted")]
    await cache.update("ann", ACTION, result_of(*outputs))
    assert await cache.get("ann", ACTION) is not None

    await blobs.delete("ann", [outputs[1].digest])

    assert await cache.get("ann", ACTION) is None
    await stored_file(blobs, b"evicted")
    assert await cache.get("ann", ACTION) is None  # it was forgotten, not hidden


async def test_results_that_nobody_uses_leave_first_and_then_the_oldest(database: Database, blobs: MemoryBlobs) -> None:
    clock = HandClock()
    cache = SqlActionCache(database, blobs, clock, ActionLimits(results=2, result_age_s=10_000))
    actions = [Digest.of(bytes([n]), SHA) for n in range(4)]
    for action in actions:
        await cache.update("ann", action, result_of())
        clock.at_s += 4000
    await cache.get("ann", actions[0])  # used again, so it stays

    removed = await cache.clean(now_s=clock.at_s)

    assert removed == 2
    left = [action for action in actions if await cache.get("ann", action) is not None]
    assert left == [actions[0], actions[3]]


async def test_a_result_over_the_limit_is_refused_by_its_name(database: Database, blobs: MemoryBlobs) -> None:
    cache = SqlActionCache(database, blobs, SystemClock(), ActionLimits(result_bytes=100))

    with pytest.raises(TooLarge, match="result_bytes"):
        await cache.update("ann", ACTION, result_of(stdout=b"x" * 200))


async def test_memory_answers_only_while_it_is_fresh_and_within_its_bytes(
    database: Database, blobs: MemoryBlobs
) -> None:
    clock = HandClock()
    cache = RememberedResults(SqlActionCache(database, blobs, clock), clock, total_bytes=1000, fresh_s=20)
    output = await stored_file(blobs, b"out")
    await cache.update("ann", ACTION, result_of(output))
    assert await cache.get("ann", ACTION) is not None
    await blobs.delete("ann", [output.digest])

    assert await cache.get("ann", ACTION) is not None  # it was there a moment ago
    clock.at_s += 21

    assert await cache.get("ann", ACTION) is None


async def test_memory_forgets_the_oldest_when_it_is_full(database: Database, blobs: MemoryBlobs) -> None:
    clock = HandClock()
    asked = 0

    class Counting(SqlActionCache):
        async def get(self, tenant: str, action: Digest):  # type: ignore[no-untyped-def]
            nonlocal asked
            asked += 1
            return await super().get(tenant, action)

    cache = RememberedResults(Counting(database, blobs, clock), clock, total_bytes=1000, fresh_s=20)
    actions = [Digest.of(bytes([n]), SHA) for n in range(3)]
    for action in actions:
        await cache.update("ann", action, result_of(stdout=b"x" * 50))
        await cache.get("ann", action)

    for action in (actions[2], actions[1], actions[0]):
        assert await cache.get("ann", action) is not None

    assert asked == 4  # two fit
