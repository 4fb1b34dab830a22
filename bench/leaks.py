"""What is left behind after many sandboxes and many tasks: nothing, or the benchmark fails.

The sandboxes live and die in this process and are compared by what this process owns; the tasks run in a `corral up`
of its own, which is compared by its processes, descriptors and database rows, and after its stop by what the machine
has more than before.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import uvloop

from bench.report import Row
from bench.sandboxes import TRUE, pools, prepared_root
from bench.server import Server, running
from corral.client import Corral
from corral.sandboxes.model import SandboxSpec
from corral.sandboxes.pool_model import PoolConfig
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.model import Phase, TaskDefinition
from corral.testing.runtime_contract import belongings

_SANDBOXES: Final = 10_000
_AT_ONCE: Final = 4
_TASKS: Final = 1000
_BATCH: Final = 100
_READERS: Final = 64
_SETTLED_WITHIN_S: Final = 30.0
_EXPIRES_S: Final = 0.0  # a task that has ended is forgotten at once; its audit row stays, on purpose


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is more than before, one phrase each."""
    found = []
    for name, now in after.items():
        more = sorted(now - before[name]) if isinstance(now, set) else now - before[name]
        if more and (not isinstance(more, int) or more > 0):
            found.append(f"{name}: {more}")
    return found


def _namespaces(processes: Iterable[psutil.Process]) -> set[str]:
    """The network namespaces in which they live."""
    found = set()
    for process in processes:
        try:
            found.add(Path(f"/proc/{process.pid}/ns/net").readlink().name)
        except OSError:
            continue  # it ended, or is not ours to look at
    return found


async def _one_sandbox(runtime: Any, root: Path, number: int) -> None:
    box = await runtime.start(SandboxSpec(id=f"sbx_leak{number}", tenant="bench", root=str(root)))
    sandbox = Sandbox(box)
    try:
        result = await sandbox.exec(TRUE)
    finally:
        await sandbox.stop()
    if not result.ok:
        raise RuntimeError(f"sandbox {number}: {result}")


async def _sandboxes(directory: Path, count: int) -> tuple[list[str], float]:
    root = prepared_root(directory)
    async with pools(directory, PoolConfig()) as (_, runtime):
        await _one_sandbox(runtime, root, count)  # what is opened once is open
        home = runtime._home.directory
        files = {str(path) for path in home.rglob("*")}
        before = {**belongings(), "files of the worker": files}
        numbers = iter(range(count))
        began_s = time.perf_counter()

        async def lane() -> None:
            for number in numbers:
                await _one_sandbox(runtime, root, number)

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(lane())
        took_s = time.perf_counter() - began_s
        after = {**belongings(), "files of the worker": {str(path) for path in home.rglob("*")}}
    return _difference(before, after), took_s


def _belongings_of(server: Server) -> dict[str, Any]:
    """What `corral up` holds now."""
    return {
        "descriptors of the scheduler and the worker": sum(child.num_fds() for child in server.children),
        "threads": sum(child.num_threads() for child in server.children),
        "processes": sum(len(child.children(recursive=True)) for child in server.children),
        "rows of tasks": len(httpx.get(f"{server.url}/api/v1/tasks", params={"limit": 1}).json()["tasks"]),
    }


async def _open_everything(server: Server) -> None:
    """Let the pools of sandboxes, connections and threads grow to their size: what is opened once stays open."""
    async with Corral(server.url) as corral, asyncio.TaskGroup() as readers:
        for _ in range(_READERS):
            readers.create_task(corral.tasks.page(limit=1))
    await _tasks(server, _BATCH)


async def _tasks(server: Server, count: int) -> None:
    task = TaskDefinition(payload={"command": ["/bin/true"]}, expires_s=_EXPIRES_S)
    async with Corral(server.url) as corral:
        for _ in range(count // _BATCH):
            await corral.tasks.submit_all([task] * _BATCH)
        for phase in Phase:
            while (await corral.tasks.page(phase=phase.value, limit=1)).tasks:
                time.sleep(0.1)  # nothing else runs in this process


def _many_tasks(count: int) -> list[str]:
    with running() as server:
        uvloop.run(_open_everything(server))
        before = _belongings_of(server)
        uvloop.run(_tasks(server, count))
        deadline_s = time.monotonic() + _SETTLED_WITHIN_S
        while (found := _difference(before, _belongings_of(server))) and time.monotonic() < deadline_s:
            time.sleep(0.5)
        processes = server.supervisor.children(recursive=True)
        namespaces = _namespaces(processes) - _namespaces([psutil.Process()])
    return found + _left_after_stop(server, processes, namespaces)


def _left_after_stop(server: Server, processes: Sequence[psutil.Process], namespaces: set[str]) -> list[str]:
    _, alive = psutil.wait_procs(processes, timeout=_SETTLED_WITHIN_S)
    left = {
        "processes": [process.pid for process in alive],
        "network namespaces": sorted(_namespaces(psutil.process_iter()) & namespaces),
        "temporary files": [str(server.data.parent)] if server.data.parent.exists() else [],
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(server.data) in line],
    }
    return [f"{name}: {some}" for name, some in left.items() if some]


def _row(what: str, left: Sequence[str]) -> Row:
    return Row(what=what, ours="; ".join(left) or "nothing", against="", ratio="", bound="nothing", ok=not left)


def measure(*, sandboxes: int = _SANDBOXES, tasks: int = _TASKS) -> Sequence[Row]:
    """All rows of this page."""
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        left, took_s = uvloop.run(_sandboxes(Path(directory), sandboxes))
    return [
        _row(f"left by {sandboxes} sandboxes, started and stopped at {sandboxes / took_s:.0f}/s", left),
        _row(f"left by {tasks} tasks, and by the stop of all", _many_tasks(tasks)),
    ]
