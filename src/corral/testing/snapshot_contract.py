"""What every runtime with ``capabilities.snapshot`` must keep, as a pytest class; use it beside ``RuntimeContract``.

It wants three fixtures: ``runtime``; ``snapshotting``, the same as ``ports.Snapshotting``; and ``root``, which the
specs name ("" where the runtime needs none).
"""

from dataclasses import replace
from typing import cast

import pytest

from corral.kernel.clock import SystemClock
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, SandboxLost
from corral.sandboxes.model import SandboxSpec
from corral.sandboxes.pool import Pools
from corral.sandboxes.pool_model import Cold, PoolConfig, PoolKey
from corral.sandboxes.ports import Runtime, Snapshotting
from corral.sandboxes.sandbox import Sandbox
from corral.testing.runtime_contract import PATH, SMALL, belongings, left_behind, new_spec, shell, wait_until


class SnapshotContract:
    """See the module's docstring."""

    @pytest.fixture
    def spec(self, root: str) -> SandboxSpec:
        """What is frozen."""
        return replace(new_spec(), root=root)

    async def test_a_frozen_box_comes_back_with_its_files(
        self, runtime: Runtime, snapshotting: Snapshotting, spec: SandboxSpec
    ) -> None:
        sandbox = Sandbox(box := await runtime.start(spec))
        await sandbox.write_file("/work/kept", b"from before")
        await shell(sandbox, "cd /tmp && mkdir deep && echo there > deep/file")

        snapshot = await snapshotting.snapshot(box)
        restored = Sandbox(await snapshotting.restore(snapshot, replace(new_spec(), root=spec.root)))

        try:
            done = await shell(restored, "cat kept /tmp/deep/file; touch new && ls")
            assert done.stdout.split() == [b"from", b"beforethere", b"kept", b"new"], done
            assert await restored.reset()
        finally:
            await restored.stop()
        with pytest.raises(SandboxLost):
            await sandbox.ping()

    async def test_copies_differ_in_what_must_be_their_own(
        self, runtime: Runtime, snapshotting: Snapshotting, spec: SandboxSpec
    ) -> None:
        snapshot = await snapshotting.snapshot(await runtime.start(spec))
        facts = []

        for _ in range(2):
            copy = Sandbox(await snapshotting.restore(snapshot, replace(new_spec(), root=spec.root)))
            try:
                facts.append(await _facts(copy))
            finally:
                await copy.stop()

        first, second = facts
        now_s = SystemClock().now_s()
        assert abs(second["clock"] - now_s) < _CLOCK_S, "the clock of a copy stood still with the original's"
        assert first["random"] != second["random"]
        assert first["boot id"] != second["boot id"] or not first["boot id"], "a kernel with one has its own"

    async def test_a_snapshot_belongs_to_its_tenant(
        self, runtime: Runtime, snapshotting: Snapshotting, spec: SandboxSpec
    ) -> None:
        snapshot = await snapshotting.snapshot(await runtime.start(spec))

        with pytest.raises(InvalidSpec, match="another tenant"):
            await snapshotting.restore(snapshot, replace(new_spec(tenant="bob"), root=spec.root))

    async def test_a_snapshot_keeps_its_size(
        self, runtime: Runtime, snapshotting: Snapshotting, spec: SandboxSpec
    ) -> None:
        snapshot = await snapshotting.snapshot(await runtime.start(spec))
        larger = replace(spec.size, processes=spec.size.processes + 1)

        with pytest.raises(InvalidSpec, match="another size"):
            await snapshotting.restore(snapshot, replace(new_spec(larger), root=spec.root))

    async def test_what_is_forgotten_or_never_was_is_not_found(
        self, runtime: Runtime, snapshotting: Snapshotting, spec: SandboxSpec
    ) -> None:
        snapshot = await snapshotting.snapshot(await runtime.start(spec))
        await snapshotting.forget(snapshot)
        await snapshotting.forget(snapshot)

        for digest in (snapshot, Digest.of(b"never")):
            with pytest.raises(NotFound):
                await snapshotting.restore(digest, replace(new_spec(), root=spec.root))

    async def test_freezing_leaves_nothing_but_the_snapshot(
        self, runtime: Runtime, snapshotting: Snapshotting, spec: SandboxSpec
    ) -> None:
        await Sandbox(await runtime.start(spec)).stop()  # whatever is made once is made now
        before = belongings()

        snapshot = await snapshotting.snapshot(await runtime.start(replace(new_spec(), root=spec.root)))
        await Sandbox(await snapshotting.restore(snapshot, replace(new_spec(), root=spec.root))).stop()

        assert left_behind(before) == {}

    async def test_a_pool_freezes_what_is_idle_and_goes_on_from_it(
        self, runtime: Runtime, snapshotting: Snapshotting, root: str
    ) -> None:
        key = PoolKey("ann", root=root, runtime=runtime.name, size=SMALL)
        config = PoolConfig(warm=0, idle_ttl_s=0.2, acquire_within_s=_PATIENCE_S)
        itself = {runtime.name: cast(Runtime, snapshotting)}
        async with Pools(itself, config, clock=SystemClock(), new_id=lambda: new_spec().id) as pools:
            async with await pools.acquire(key) as first:
                before = await _facts(first.sandbox)
            await wait_until(lambda: sum(count.frozen for count in pools.counts()) == 1, within_s=_PATIENCE_S)

            with pytest.raises(SandboxLost):
                await first.sandbox.ping()
            async with await pools.acquire(key) as second:
                after = await _facts(second.sandbox)
                name = (await second.sandbox.run("hostname", env=PATH)).stdout.decode().strip()

        assert (second.warm, second.cold_reason, second.reused) == (False, Cold.FROZEN.value, True)
        assert name == second.sandbox.spec.host_name
        assert abs(after["clock"] - SystemClock().now_s()) < _CLOCK_S
        assert before["random"] != after["random"]
        told = pools.statistics()
        assert (told.thawed, told.start_failures) == (1, 0)
        assert told.frozen >= 1


_PATIENCE_S = 60.0
_CLOCK_S = 30.0


async def _facts(sandbox: Sandbox) -> dict[str, float]:
    random = "head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo"
    boot = "cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo 0"
    done = await sandbox.run("/bin/sh", "-c", f"date +%s; {random}; {boot}", env=PATH)
    clock, chance, boot_id = done.stdout.decode().split()
    return {"clock": float(clock), "random": int(chance, 16), "boot id": int(boot_id.replace("-", ""), 16)}
