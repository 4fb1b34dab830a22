"""Containers and gVisor against their bare tools: a warm sandbox against an exec, a cold one against a run."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from bench.report import Row, at_most, beside, p50
from bench.sandboxes import forked, prepared_root, timed, warm_life
from corral.kernel.clock import SystemClock
from corral.kernel.ids import new_id
from corral.sandboxes.cgroups import MOUNT
from corral.sandboxes.model import SandboxSpec, Size
from corral.sandboxes.pool import Pools
from corral.sandboxes.pool_model import PoolConfig, PoolKey
from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes import bundle
from corral.sandboxes.runtimes.child import launcher_path
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.oci import OciConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.sandboxes.runtimes.rootfs import AGENT_INSIDE, Roots
from corral.sandboxes.sandbox import Sandbox

_WARM_ROUNDS = 300
_TURN = 15
_COLD_ROUNDS = 20
_SIZE = Size()
_KINDS = {
    "bubblewrap": RuntimesConfig(names=("bubblewrap",)),
    "crun": RuntimesConfig(names=("oci",), oci=OciConfig(program="crun")),
    "runc": RuntimesConfig(names=("oci",), oci=OciConfig(program="runc")),
    "runsc": RuntimesConfig(names=("gvisor",)),
}


def measure() -> Sequence[Row]:
    """The rows of every tool that is installed."""
    rows: list[Row] = []
    for kind in _KINDS:
        if kind != "bubblewrap" and shutil.which(kind) is None:
            print(f"walls: {kind} is not installed: no figures", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="bench-walls-") as folder:
            rows.extend(uvloop.run(_rows(kind, Path(folder))))
    return rows


async def _rows(kind: str, work: Path) -> list[Row]:
    root = prepared_root(work)
    config = _KINDS[kind]
    with open_runtimes(config, work / "sandboxes") as runtimes:
        runtime = runtimes[config.names[0]]
        rows = await _warm(kind, runtime, root)
        if kind != "bubblewrap":  # it has its own page
            rows.append(await _cold(kind, runtime, root, BareTool(kind, work / "bare", root)))
        return rows


async def _warm(kind: str, runtime: Runtime, root: Path) -> list[Row]:
    """Ours and the bare things take turns of several, as on the page of sandboxes, so that a busy moment hits all."""
    program, clock = str(root / "bin" / "true"), SystemClock()
    key = PoolKey("bench", root=str(root), runtime=runtime.name, size=_SIZE)
    bare: dict[str, Callable[[], object]] = {
        "fork": lambda: forked(program),
        "subprocess": lambda: subprocess.run([program], check=True),
        "spawn": lambda: os.waitpid(os.posix_spawn(program, [program], {}), 0),
    }
    ours: list[float] = []
    samples: dict[str, list[float]] = {"exec": [], **{name: [] for name in bare}}
    pools = Pools(
        {runtime.name: runtime}, PoolConfig(warm=2), clock=clock, new_id=lambda: new_id("sbx", now_s=clock.now_s())
    )
    async with pools:
        pools.pin(key)
        await pools.wait_idle(key, 2, within_s=60)
        for _ in range(_WARM_ROUNDS // _TURN):
            for _ in range(_TURN):
                ours.append(await warm_life(pools, key))
            for name, run in bare.items():
                samples[name] += [timed(run) for _ in range(_TURN)]
            if kind == "runsc":
                async with await pools.acquire(key) as lease:
                    samples["exec"].append(timed(partial(_runsc_exec, lease.sandbox)))
    what = f"{kind}: warm acquire + exec of a static true + release, p50"
    if kind == "runsc":
        return [at_most(what, p50(ours), "runsc exec true", p50(samples["exec"]), times=0.25)]
    return [
        at_most(what, p50(ours), "fork + exec + wait from Python", p50(samples["fork"]), times=1.5),
        at_most("the same", p50(ours), "subprocess.run", p50(samples["subprocess"]), times=1.5),
        beside("the same", p50(ours), "os.posix_spawn + waitpid", p50(samples["spawn"])),
    ]


async def _cold(kind: str, runtime: Runtime, root: Path, tool: "BareTool") -> Row:
    ours, bare = [], []
    for index in range(_COLD_ROUNDS):
        spec = SandboxSpec(id=f"sbx_bench{kind}{index}", tenant="bench", root=str(root), size=_SIZE)
        began_s = time.perf_counter()
        box = await runtime.start(spec)
        ours.append(time.perf_counter() - began_s)
        await box.stop()
        bare.append(timed(tool.run))
    tool.close()
    return at_most(f"{kind}: a cold sandbox is ready, p50", p50(ours), f"{kind} run true", p50(bare), plus_s=0.010)


class BareTool:
    """The tool itself, run by root on a bundle like ours, with true instead of the agent."""

    def __init__(self, kind: str, folder: Path, root: Path) -> None:
        folder.mkdir()
        self._kind = kind
        self._folder = folder
        self._home = Home(folder / "home")
        self._home.__enter__()
        self._roots = Roots(self._home, "bare", uid=None)
        spec = SandboxSpec(id="bare", tenant="bench", root=str(root), size=_SIZE)
        document = dict(bundle.config(spec, self._roots.root(str(root)), bundle.Shape(bounded_files=kind != "runsc")))
        assert document["process"]["args"][0] == AGENT_INSIDE
        document["process"]["args"] = ["/bin/true"]
        (folder / "config.json").write_bytes(msgspec.json.encode(document))
        self._numbers: Iterator[int] = iter(range(10_000))
        # a shell starts it: that costs less than a start from Python. In there crun sees no control groups, since it
        # refuses a machine with both kinds of them (docs/reference/isolation.md)
        self._shell = subprocess.Popen(["unshare", "-m", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if kind == "crun":
            self._do(["mount", "-t", "tmpfs", "none", str(MOUNT)])

    def run(self) -> None:
        """One container, from nothing to gone."""
        own = {
            "crun": ["--cgroup-manager", "disabled"],
            "runc": [],
            "runsc": ["--network=none", "--ignore-cgroups"],
        }[self._kind]
        program, state = str(shutil.which(self._kind)), str(self._folder / "state")
        self._do([program, "--root", state, *own, "run", "--bundle", str(self._folder), f"bare{next(self._numbers)}"])

    def close(self) -> None:
        """Remove what it made."""
        self._shell.communicate()
        self._roots.close()
        self._home.__exit__(None, None, None)

    def _do(self, command: Sequence[str]) -> None:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        words = self._folder / "words"  # not ours: runsc makes its output the container's user's
        self._shell.stdin.write(f"{shlex.join(command)} </dev/null >{words} 2>&1; echo $?\n".encode())
        self._shell.stdin.flush()
        if (status := self._shell.stdout.readline()) != b"0\n":
            raise RuntimeError(f"{command[0]} ended with {status!r}: {words.read_text()}")


def _runsc_exec(sandbox: Sandbox) -> None:
    """In the very sandbox: with the flags of the runsc that runs it, as root of that one's user namespace."""
    runsc = sandbox.host_pid
    words = Path(f"/proc/{runsc}/cmdline").read_bytes().decode().split("\0")
    command = [*words[: words.index("run")], "exec", sandbox.spec.id, "/bin/true"]
    beside = [str(launcher_path()), "-j", str(runsc), "--"] if os.geteuid() == 0 else []
    subprocess.run([*beside, *command], check=True, capture_output=True, timeout=60)
