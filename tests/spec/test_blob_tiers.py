"""What ordered tiers do when one of them fails, hangs or lacks something. Runs on a virtual clock."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterable

import pytest

from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.adapters.tiered import Tier, TieredBlobs
from corral.blobs.content import pieces_of
from corral.blobs.model import StoreLimits
from corral.kernel.clock import LoopClock
from corral.kernel.digest import Digest
from corral.kernel.errors import BlobCorrupt, InvalidSpec, NotFound, QuotaExceeded, StoreUnavailable
from corral.testing.blob_contract import MIB, Unread, content_of, read_all

pytestmark = pytest.mark.looptime

DATA = content_of(3 * MIB)
DIGEST = Digest.of(DATA)


class Faulty:
    """A store in memory that fails or hangs while told so, perhaps only after some pieces."""

    def __init__(self) -> None:
        self.inner = MemoryBlobs(clock=LoopClock())
        self.fault: str = ""
        self.pieces_before_fault = 0
        self.calls = 0

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        await self._suffer()
        return await self.inner.find_missing(tenant, digests)

    async def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        left = self.pieces_before_fault
        if not left:
            await self._suffer()
        async for piece in self.inner.read(tenant, digest, offset=offset, length=length):
            yield piece
            left -= 1
            if left == 0:
                await self._suffer()

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        left = self.pieces_before_fault
        if not left:
            await self._suffer()
        if not await self.inner.find_missing(tenant, [digest]):
            return
        kept = []
        async for piece in content:
            kept.append(piece)
            left -= 1
            if left == 0:
                await self._suffer()
        await self.inner.write(tenant, digest, pieces_of(b"".join(kept)))

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        await self._suffer()
        await self.inner.delete(tenant, digests)

    async def _suffer(self) -> None:
        self.calls += 1
        if self.fault == "fails":
            raise StoreUnavailable("injected")
        if self.fault == "hangs":
            await asyncio.Event().wait()


def tiers(*stores: Faulty) -> TieredBlobs:
    return TieredBlobs(
        [Tier(name=f"tier{i}", store=store, deadline_s=2.0) for i, store in enumerate(stores)],
        cool_off_s=5.0,
        clock=LoopClock(),
    )


async def holds(store: Faulty, digest: Digest = DIGEST) -> bool:
    return not await store.inner.find_missing("ann", [digest])


async def test_a_write_reaches_every_tier() -> None:
    near, far = Faulty(), Faulty()

    await tiers(near, far).write("ann", DIGEST, pieces_of(DATA))

    assert await holds(near)
    assert await holds(far)


async def test_what_a_later_tier_holds_is_filled_into_the_first() -> None:
    near, far = Faulty(), Faulty()
    await far.inner.write("ann", DIGEST, pieces_of(DATA))

    assert await read_all(tiers(near, far), "ann", DIGEST) == DATA

    assert await holds(near)


async def test_a_part_of_a_small_blob_fills_the_first_tier_too() -> None:
    near, far = Faulty(), Faulty()
    await far.inner.write("ann", DIGEST, pieces_of(DATA))

    assert await read_all(tiers(near, far), "ann", DIGEST, offset=5, length=10) == DATA[5:15]

    assert await holds(near)


async def test_readers_of_one_blob_fetch_it_once() -> None:
    near, far = Faulty(), Faulty()
    await far.inner.write("ann", DIGEST, pieces_of(DATA))
    store = tiers(near, far)

    async with asyncio.TaskGroup() as readers:
        reads = [readers.create_task(read_all(store, "ann", DIGEST)) for _ in range(5)]

    assert all(read.result() == DATA for read in reads)
    assert far.calls == 1


@pytest.mark.parametrize("fault", ["fails", "hangs"])
@pytest.mark.parametrize("sick", [0, 1])
@pytest.mark.parametrize("when", ["before", "midway"])
async def test_a_write_survives_a_sick_tier(fault: str, sick: int, when: str) -> None:
    stores = [Faulty(), Faulty()]
    store = tiers(*stores)
    if when == "before":
        stores[sick].fault = fault
    else:
        stores[sick].pieces_before_fault = 1
    began_s = asyncio.get_running_loop().time()

    async def fall_sick_when_asked() -> AsyncGenerator[bytes, None]:
        stores[sick].fault = fault
        async for piece in pieces_of(DATA):
            yield piece

    await store.write("ann", DIGEST, fall_sick_when_asked())

    assert await holds(stores[1 - sick])
    assert not await holds(stores[sick])
    assert asyncio.get_running_loop().time() - began_s <= 2.1
    assert [state.ok for state in store.health()] == [sick != 0, sick != 1]


@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_a_read_survives_a_sick_first_tier(fault: str) -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)
    await store.write("ann", DIGEST, pieces_of(DATA))
    near.fault = fault
    began_s = asyncio.get_running_loop().time()

    assert await read_all(store, "ann", DIGEST) == DATA
    assert asyncio.get_running_loop().time() - began_s <= 2.1


@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_a_tier_that_fails_midway_ends_the_read_and_the_next_read_skips_it(fault: str) -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)
    await store.write("ann", DIGEST, pieces_of(DATA))
    near.fault, near.pieces_before_fault = fault, 1

    with pytest.raises(StoreUnavailable):
        await read_all(store, "ann", DIGEST)

    assert await read_all(store, "ann", DIGEST) == DATA


async def test_a_sick_tier_is_left_alone_then_tried_again_and_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)
    await store.write("ann", DIGEST, pieces_of(DATA))
    near.fault = "fails"

    for _ in range(10):
        assert await read_all(store, "ann", DIGEST) == DATA
    calls_while_sick = near.calls
    await asyncio.sleep(5.1)
    near.fault = ""
    assert await read_all(store, "ann", DIGEST) == DATA

    assert calls_while_sick == 3  # the look before the write, the write, and one failing read
    assert near.calls > calls_while_sick
    assert all(state.ok for state in store.health())
    log = capsys.readouterr().out
    assert log.count("a blob store fails and is skipped") == 1
    assert log.count("a blob store works again") == 1


@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_when_no_tier_answers_the_error_names_them_all(fault: str) -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)
    near.fault = far.fault = fault

    with pytest.raises(StoreUnavailable, match=r"tier0.*tier1"):
        await store.find_missing("ann", [DIGEST])
    with pytest.raises(StoreUnavailable):
        await read_all(store, "ann", DIGEST)
    with pytest.raises(StoreUnavailable):
        await store.write("ann", DIGEST, pieces_of(DATA))
    with pytest.raises(StoreUnavailable):
        await store.delete("ann", [DIGEST])


async def test_absent_is_unavailable_while_a_tier_that_may_hold_it_is_sick_and_not_found_afterwards() -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)
    far.fault = "fails"

    with pytest.raises(StoreUnavailable, match="tier1"):
        await read_all(store, "ann", DIGEST)
    assert await store.find_missing("ann", [DIGEST]) == frozenset([DIGEST])
    far.fault = ""
    await asyncio.sleep(6)

    with pytest.raises(NotFound):
        await read_all(store, "ann", DIGEST)


async def test_a_corrupt_copy_is_replaced_from_the_next_tier() -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)
    await store.write("ann", DIGEST, pieces_of(DATA))
    held = near.inner._held["ann", DIGEST]
    held.data = content_of(3 * MIB, seed=1)

    assert await read_all(store, "ann", DIGEST) == DATA
    assert await read_all(store, "ann", DIGEST) == DATA


async def test_a_blob_that_is_corrupt_everywhere_is_corrupt() -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)
    await store.write("ann", DIGEST, pieces_of(DATA))
    for tier in (near, far):
        tier.inner._held["ann", DIGEST].data = content_of(3 * MIB, seed=1)

    with pytest.raises(BlobCorrupt):
        await read_all(store, "ann", DIGEST)


async def test_content_that_is_slow_is_nobodys_fault() -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)

    async def slow() -> AsyncGenerator[bytes, None]:
        async for piece in pieces_of(DATA):
            await asyncio.sleep(60)
            yield piece

    await store.write("ann", DIGEST, slow())

    assert all(state.ok for state in store.health())
    assert await holds(near)
    assert await holds(far)


async def test_wrong_content_is_the_callers_mistake_and_no_tier_is_blamed() -> None:
    near, far = Faulty(), Faulty()
    store = tiers(near, far)

    with pytest.raises(InvalidSpec):
        await store.write("ann", DIGEST, pieces_of(content_of(3 * MIB, seed=1)))

    assert all(state.ok for state in store.health())
    assert not await holds(near)


async def test_a_blob_one_tier_holds_is_copied_to_the_other_without_reading_the_content() -> None:
    near, far = Faulty(), Faulty()
    await far.inner.write("ann", DIGEST, pieces_of(DATA))
    content = Unread(DATA)

    await tiers(near, far).write("ann", DIGEST, content)

    assert content.pieces_read == 0
    assert await holds(near)


async def test_a_full_first_tier_is_not_fatal_but_full_tiers_are() -> None:
    limits = StoreLimits(tenant_bytes=MIB)
    near, far = Faulty(), Faulty()
    near.inner = MemoryBlobs(limits=limits, clock=LoopClock())
    store = tiers(near, far)

    await store.write("ann", DIGEST, pieces_of(DATA))

    assert await read_all(store, "ann", DIGEST) == DATA
    assert not await holds(near)
    assert await holds(far)
    far.inner = MemoryBlobs(limits=limits, clock=LoopClock())
    with pytest.raises(QuotaExceeded):
        await store.write("ann", DIGEST, pieces_of(DATA))


async def test_no_tiers_at_all_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="at least one"):
        TieredBlobs([])
