"""What many ask of the disk at once is done together."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from corral.blobs.adapters.disk_group import Gathering
from corral.kernel.errors import StoreUnavailable


async def test_what_is_asked_in_one_turn_is_one_batch_and_each_gets_its_own_answer() -> None:
    batches: list[list[int]] = []

    def step(batch: list[int]) -> list[int | Exception]:
        batches.append(batch)
        return [ValueError(str(number)) if number == 7 else number * 2 for number in batch]

    async def ask(number: int) -> int | None:
        try:
            return await gathering.ask(number)
        except ValueError:
            return None

    with ThreadPoolExecutor(1) as threads:
        gathering: Gathering[int, int] = Gathering(threads, step)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            asking = [group.create_task(ask(number)) for number in range(20)]

    assert batches == [list(range(20))]
    assert [each.result() for each in asking] == [None if number == 7 else number * 2 for number in range(20)]


async def test_whoever_gave_up_is_not_waited_for_and_the_next_is_answered() -> None:
    with ThreadPoolExecutor(1) as threads:
        gathering: Gathering[int, int] = Gathering(threads, list)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            gone = [group.create_task(gathering.ask(number)) for number in range(100)]
            await asyncio.sleep(0)  # all have asked
            for each in gone:
                each.cancel()
            left = group.create_task(gathering.ask(100))

        assert left.result() == 100


async def test_a_closed_store_refuses_and_keeps_nobody_waiting() -> None:
    with ThreadPoolExecutor(1) as threads:
        gathering: Gathering[int, int] = Gathering(threads, list)

    async with asyncio.timeout(30):
        with pytest.raises(StoreUnavailable, match="closed"):
            await gathering.ask(1)
