"""Pools of real sandboxes: warm hand-outs, waiting, soiling, death, closing."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from corral.kernel.clock import SystemClock
from corral.kernel.errors import InvalidSpec, PoolExhausted, SandboxFailed
from corral.sandboxes.model import SandboxSpec
from corral.sandboxes.pool import Pools
from corral.sandboxes.pool_model import Cold, PoolConfig, PoolKey
from corral.sandboxes.ports import Box, Runtime
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.runtime_contract import SMALL, belongings, left_behind, shell

ANN = PoolKey("ann", size=SMALL)
BOB = PoolKey("bob", size=SMALL)
BASE = PoolConfig(warm=0, max=4, tenant_max=4, sandboxes_max=8, parked_max=8, acquire_within_s=20)
_numbers = count(1)

OpenPools = Callable[..., AbstractAsyncContextManager[Pools]]


def change(**changes: object) -> PoolConfig:
    return PoolConfig(**{**{name: getattr(BASE, name) for name in BASE.__struct_fields__}, **changes})


@pytest.fixture
def opened(tmp_path: Path) -> OpenPools:
    @asynccontextmanager
    async def open_pools(
        config: PoolConfig = BASE, wrap: Callable[[Runtime], Runtime] = lambda r: r
    ) -> AsyncIterator[Pools]:
        with open_runtimes(RuntimesConfig(), tmp_path / "sandboxes") as runtimes:
            wrapped = {name: wrap(runtime) for name, runtime in runtimes.items()}
            new_id = lambda: f"sbx_contract{os.getpid()}xpool{next(_numbers)}"  # noqa: E731
            async with Pools(wrapped, config, clock=SystemClock(), new_id=new_id) as pools:
                yield pools

    return open_pools


async def test_a_released_sandbox_is_emptied_and_handed_out_again(opened: OpenPools) -> None:
    async with opened() as pools:
        async with await pools.acquire(ANN) as first:
            await shell(first.sandbox, "echo secret > /work/left; echo secret > /tmp/left")
        assert await pools.wait_idle(ANN, 1, within_s=5)

        async with await pools.acquire(ANN) as second:
            seen = await shell(second.sandbox, "ls -A /work /tmp /dev/shm")

        assert (first.warm, first.cold_reason, first.reused) == (False, Cold.FIRST.value, False)
        assert (second.warm, second.cold_reason, second.reused) == (True, "", True)
        assert second.sandbox is first.sandbox
        assert b"left" not in seen.stdout


async def test_one_tenant_never_gets_another_s_sandbox(opened: OpenPools) -> None:
    async with opened() as pools:
        async with await pools.acquire(ANN) as ann:
            pass
        assert await pools.wait_idle(ANN, 1, within_s=5)

        async with await pools.acquire(BOB) as bob:
            assert bob.sandbox is not ann.sandbox
            assert bob.sandbox.spec.tenant == "bob"


@pytest.mark.parametrize("script", ["setsid sleep 600 >/dev/null 2>&1 &", "head -c 64M /dev/zero > /work/big"])
async def test_a_soiled_sandbox_is_never_used_again(opened: OpenPools, script: str) -> None:
    async with opened() as pools:
        async with await pools.acquire(ANN) as first:
            await shell(first.sandbox, script)

        async with await pools.acquire(ANN) as second:
            assert second.sandbox is not first.sandbox
        assert pools.statistics().stopped["soiled"] == 1


async def test_a_sandbox_that_dies_while_idle_is_not_handed_out(opened: OpenPools) -> None:
    async with opened() as pools:
        async with await pools.acquire(ANN) as first:
            dead = first.sandbox
        assert await pools.wait_idle(ANN, 1, within_s=5)

        await dead.stop()
        await dead.wait_lost()
        async with await pools.acquire(ANN) as second:
            assert second.sandbox is not dead
            assert (await shell(second.sandbox, "echo fine")).stdout == b"fine\n"


async def test_those_who_wait_are_served_in_turn(opened: OpenPools) -> None:
    async with opened(change(max=1)) as pools:
        served: list[int] = []

        async def use(number: int) -> None:
            async with await pools.acquire(ANN) as lease:
                served.append(number)
                assert (await shell(lease.sandbox, "true")).result.ok

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(use(number))

        assert served == [0, 1, 2, 3, 4, 5]
        assert pools.statistics().started == 1


async def test_waiting_ends_at_its_deadline_and_loses_nothing(opened: OpenPools) -> None:
    async with opened(change(max=1)) as pools:
        async with await pools.acquire(ANN) as held:
            with pytest.raises(PoolExhausted, match=r"within 0\.05 s"):
                await pools.acquire(ANN, within_s=0.05)

        async with await pools.acquire(ANN) as again:
            assert again.sandbox is held.sandbox


async def test_a_full_line_is_told_at_once(opened: OpenPools) -> None:
    async with opened(change(max=1, waiting_max=0)) as pools:
        with pytest.raises(PoolExhausted, match="waiting_max"):
            await pools.acquire(ANN)


async def test_cancelling_a_wait_at_any_moment_loses_no_slot(opened: OpenPools) -> None:
    async with opened(change(max=1)) as pools:
        for delay_s in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
            try:
                async with asyncio.timeout(delay_s):
                    (await pools.acquire(ANN)).release_nowait()
            except TimeoutError:
                pass

        async with await pools.acquire(ANN) as lease:
            assert (await shell(lease.sandbox, "true")).result.ok


async def test_releasing_twice_is_releasing_once(opened: OpenPools) -> None:
    async with opened(change(max=1)) as pools:
        first = await pools.acquire(ANN)
        await first.release()
        second = await pools.acquire(ANN)

        await first.release()

        assert [pool.busy for pool in pools.counts()] == [1]
        await second.release()


async def test_a_burst_of_a_hundred_finds_a_warm_pool(opened: OpenPools) -> None:
    config = change(warm=100, max=100, tenant_max=100, sandboxes_max=100, parked_max=100)
    async with opened(config) as pools:
        pools.pin(ANN)
        assert await pools.wait_idle(ANN, 100, within_s=60)

        leases = [await pools.acquire(ANN) for _ in range(100)]

        assert all(lease.warm for lease in leases)
        assert len({lease.sandbox.spec.id for lease in leases}) == 100
        for lease in leases:
            lease.release_nowait()


class Broken:
    """A runtime whose boxes never start."""

    def __init__(self, inner: Runtime) -> None:
        self.name, self.capabilities, self.starts = inner.name, inner.capabilities, 0

    async def start(self, spec: SandboxSpec) -> Box:
        self.starts += 1
        raise SandboxFailed("the kernel said no")

    async def sweep(self) -> int:
        return 0


async def test_starts_that_keep_failing_open_the_breaker_and_everybody_is_told(opened: OpenPools) -> None:
    broken: list[Broken] = []

    def wrap(runtime: Runtime) -> Runtime:
        broken.append(Broken(runtime))
        return broken[0]

    async with opened(change(breaker_failures=3, breaker_backoff_s=60), wrap) as pools:
        for _ in range(5):
            with pytest.raises(SandboxFailed, match="the kernel said no"):
                await pools.acquire(ANN)

        assert broken[0].starts == 3


async def test_what_cannot_be_started_is_refused_by_name(opened: OpenPools) -> None:
    async with opened() as pools:
        with pytest.raises(InvalidSpec, match="/no/such/root"):
            await pools.acquire(replace(ANN, root="/no/such/root"))
        with pytest.raises(InvalidSpec, match="gvisor"):
            await pools.acquire(replace(ANN, runtime="gvisor"))


async def test_closing_stops_what_is_busy_refuses_who_waits_and_leaves_nothing(opened: OpenPools) -> None:
    async with opened():
        pass
    before = belongings()

    async with asyncio.TaskGroup() as group, opened(change(max=2, warm=2)) as pools:
        await pools.acquire(ANN)
        await pools.acquire(ANN)
        waiting = group.create_task(_refusal(pools))
        await asyncio.sleep(0)

    assert "closing" in str(waiting.result())
    assert left_behind(before) == {}


async def _refusal(pools: Pools) -> PoolExhausted:
    with pytest.raises(PoolExhausted) as refused:
        await pools.acquire(ANN)
    return refused.value
