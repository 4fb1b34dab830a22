"""Ids sort by birth and cannot be guessed; tokens say nothing."""

import asyncio
import string
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.kernel.clock import LoopClock, SystemClock
from corral.kernel.ids import is_id, new_id, new_token


@given(st.lists(st.integers(0, 4_000_000_000_000), min_size=2, max_size=20, unique=True))
@settings(derandomize=True, deadline=None)
def test_ids_sort_by_the_millisecond_of_their_birth(births_ms: list[int]) -> None:
    made = {birth: new_id("task", now_s=birth / 1000) for birth in births_ms}

    ordered = sorted(births_ms, key=lambda birth: made[birth])
    assert all(later - earlier >= -1 for earlier, later in pairwise(ordered))


@given(st.floats(0, 4e9), st.sampled_from(["task", "sbx", "wrk", "grp", "evt"]))
@settings(derandomize=True, deadline=None)
def test_every_new_id_is_one_and_only_of_its_own_prefix(now_s: float, prefix: str) -> None:
    made = new_id(prefix, now_s=now_s)

    assert is_id(made, prefix)
    assert not is_id(made, "other")
    assert len(made) == len(prefix) + 27
    assert set(made) <= set(string.ascii_lowercase + string.digits + "_")


def test_ids_of_one_moment_differ_by_80_random_bits() -> None:
    asked: list[int] = []

    def random_bits(count: int) -> int:
        asked.append(count)
        return len(asked)

    first, second = (new_id("task", now_s=1.0, random_bits=random_bits) for _ in range(2))

    assert asked == [80, 80]
    assert first[:15] == second[:15] and first != second


def test_a_thousand_ids_of_one_moment_are_a_thousand() -> None:
    assert len({new_id("task", now_s=1.0) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text",
    ["", "task", "task_", "task_" + "0" * 25, "task_" + "0" * 27, "task_" + "O" * 26, "task_" + "u" * 26, 
     "TASK_" + "0" * 26,
     "task_" + "0" * 25 + "\n", "task_" + "0" * 25 + "/", "_" + "0" * 26, "task__" + "0" * 25, "../task_" + "0" * 26],
)  # fmt: skip
def test_what_could_not_come_from_us_is_no_id(text: str) -> None:
    assert not is_id(text, "task")


def test_a_token_is_256_random_bits() -> None:
    asked: list[int] = []

    def random_bits(count: int) -> int:
        asked.append(count)
        return (1 << count) - 1

    assert new_token(random_bits=random_bits) == "1" + "z" * 51
    assert asked == [256]
    assert len({new_token() for _ in range(100)}) == 100


def test_the_systems_monotonic_clock_never_goes_back() -> None:
    clock = SystemClock()

    read = [clock.monotonic_s() for _ in range(1000)]

    assert read == sorted(read)
    assert clock.now_s() > 1_700_000_000


@pytest.mark.looptime
async def test_a_loop_clock_follows_the_virtual_loop() -> None:
    clock = LoopClock(epoch_s=1000.0)
    started_s, monotonic_s = clock.now_s(), clock.monotonic_s()
    await asyncio.sleep(3600)

    assert clock.now_s() - started_s == pytest.approx(3600)
    assert clock.monotonic_s() - monotonic_s == pytest.approx(3600)
    assert started_s >= 1000.0
