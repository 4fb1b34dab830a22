"""A build of 5,000 files on 64 workers, whose compiler sleeps 100 ms, behind one scheduler: beside the ideal time.

Scheduler and compile daemon are the processes that users run; between them and the workers all is real: routes, tokens,
pinned TLS, uploads, action cache, audit rows. What is not: sandbox and compiler (``simulated_workers``), and make with
its wrappers, whose part of the conversation with the daemon is spoken from here.
"""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil
import uvloop

from bench.report import Row
from bench.simulated_workers import COMPILE_S, MADE, fork_workers
from corral.compile import frames
from corral.compile.rendezvous import SOCKET, TOKEN
from corral.testing.compiles import Compiles, aged, ask_frame, compiles
from corral.testing.processes import CorralProcess

_SCALES: Final = ((64, 5000), (16, 1250))
"""Workers and files. The second has the same ideal time, and asks a quarter of the processors for each second."""
_BOUND: Final = 1.15
_WARM: Final = 4


@dataclass(frozen=True, slots=True)
class _Source:
    """One file of the project, as a wrapper asks for it."""

    words: tuple[str, ...]
    target: Path


@dataclass(slots=True)
class _Processor:
    """Processor time of everything that takes part, so far, in seconds; ``bench`` are the wrappers' words."""

    scheduler: list[int]
    daemon: list[int]
    workers: list[int]

    def spent_s(self) -> dict[str, float]:
        pids = {"scheduler": self.scheduler, "daemon": self.daemon, "workers": self.workers, "bench": [os.getpid()]}
        return {who: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in each) for who, each in pids.items()}


def _project(folder: Path, count: int) -> Sequence[_Source]:
    """Files that all include one header."""
    (folder / ".corral").touch()
    (folder / "x.h").write_text("#define X 1\n")
    made = []
    for number in range(count):
        (folder / f"f{number}.c").write_text(f'#include "x.h"\nint f{number};\n')
        words = ("-O2", "-Wall", "-I.", "-c", f"f{number}.c", "-o", f"f{number}.o")
        made.append(_Source(words, folder / f"f{number}.o"))
    aged(*folder.glob("*.[ch]"))
    return made


def _frame(project: Path, compiler: str, source: _Source, environment: str, token: bytes) -> bytes:
    return ask_frame(token, cwd=str(project), program=compiler, arguments=source.words, environment=(environment,))


class _Build:
    """make -j, in the words of its wrappers."""

    def __init__(self, ours: Compiles, project: Path, compiler: str, environment: str) -> None:
        self._socket = str(ours.private / SOCKET)
        self._token = (ours.private / TOKEN).read_bytes()
        self._project = project
        self._compiler = compiler
        self._environment = environment

    async def run(self, sources: Sequence[_Source], jobs: int, *, warm: bool = False) -> float:
        """Compile all; how long that took, in seconds. ``warm``: what the fleet does not take is no matter."""
        waiting = iter(sources)

        async def job() -> None:
            for source in waiting:
                kind, body = await self._answer(source)
                if not warm and (kind != 1 or source.target.stat().st_size != len(MADE)):
                    raise RuntimeError(f"{source.target.name}: not what a worker made: {body[:200]!r}\n{self._said()}")

        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(job())
        return time.perf_counter() - began_s

    async def _answer(self, source: _Source) -> tuple[int, bytes]:
        """Kind and content of the answer that ends a wrapper's wait."""
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            writer.write(_frame(self._project, self._compiler, source, self._environment, self._token))
            while True:
                body = await reader.readexactly(frames.frame_length(await reader.readexactly(4)))
                if body[0] != frames.WAIT[4]:
                    return body[0], body
        finally:
            writer.close()

    def _said(self) -> str:
        """The end of the daemon's log."""
        return Path(self._socket).with_name("daemon.log").read_text()[-2000:]


def measure() -> Sequence[Row]:
    """A build of each scale, and where the processor time went."""
    return [row for workers, files in _SCALES for row in _build(workers, files)]


def _build(count: int, files: int) -> Sequence[Row]:
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as work:
        home = Path(work, "scheduler")
        scheduler = CorralProcess(
            "scheduler", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=off"
        )
        workers: list[int] = []
        try:
            scheduler.start()
            workers = fork_workers(count, scheduler.grpc, Path(work))
            took_s, spent = _measure(scheduler, workers, Path(work), files)
        finally:
            for child in workers:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            scheduler.stop()
    ideal_s = files * COMPILE_S / count
    cores = os.cpu_count() or 1
    spent_s = sum(spent.values())
    parts = ", ".join(f"{who} {each_s / files * 1000:.2f}" for who, each_s in spent.items())
    return [
        Row(
            what=f"{files} compiles of 100 ms on {count} workers ({files / took_s:.0f}/s)",
            ours=f"{took_s:.2f} s",
            against=f"ideal {ideal_s:.2f} s",
            ratio=f"{took_s / ideal_s:.2f} ×",
            bound=f"≤ {_BOUND:g} ×",
            ok=took_s <= ideal_s * _BOUND,
        ),
        Row(
            what=f"the same: processor time of one compile, in ms: {parts}",
            ours=f"{spent_s / files * 1000:.2f} ms",
            against=f"what {cores} cores have in the ideal time {ideal_s * cores / files * 1000:.2f} ms",
            ratio=f"{spent_s / ideal_s / cores:.2f} ×",
            bound="",
            ok=None,
        ),
    ]


def _measure(scheduler: CorralProcess, workers: list[int], work: Path, files: int) -> tuple[float, dict[str, float]]:
    project = work / "project"
    project.mkdir()
    compiler = os.path.realpath(shutil.which("gcc") or "/usr/bin/gcc")
    count = len(workers)
    sources = _project(project, files + count * _WARM)
    settings = {
        "CORRAL_COMPILE__REMOTE__SCHEDULER": scheduler.url,
        "CORRAL_COMPILE__REMOTE__SLOTS": str(min(256, count)),
    }
    with compiles(settings) as ours:
        environment = f"PATH={ours.environment['PATH']}"
        _wait_for_workers(scheduler.url, count)
        ours.run("gcc", "--version", cwd=project)
        processor = _Processor([scheduler.process.pid], [ours.daemon], workers)
        build = _Build(ours, project, compiler, environment)
        before: list[dict[str, float]] = []

        async def whole() -> float:
            await build.run(sources[files:], count * 2, warm=True)  # connections, certificates, libraries
            before.append(processor.spent_s())
            return await build.run(sources[:files], count * 2)

        took_s = uvloop.run(whole())
        spent = {who: each_s - before[0][who] for who, each_s in processor.spent_s().items()}
        return took_s, spent


def _wait_for_workers(url: str, count: int) -> None:
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s:
        listed = httpx.get(f"{url}/api/v1/workers", timeout=30).json()["workers"]
        if sum(each["state"] == "ready" for each in listed) >= count:
            return
        time.sleep(0.5)
    raise RuntimeError("not all workers came")
