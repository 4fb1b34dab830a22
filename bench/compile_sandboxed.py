"""A build whose every compile runs in a sandbox of a worker on this machine, beside the bare build.

Each turn has a macro of its own, so that nobody, here or on the worker, has seen any of its compiles before.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil

from bench.compile import Tool, make, projects
from bench.report import Row, at_most
from corral.compile.journal import read_journal
from corral.compile.model import Outcome
from corral.entry import WRAPPER
from corral.testing.compiles import Compiles, compile_fleet, compiles

_TURNS = int(os.environ.get("BENCH_COMPILE_COLD", "3"))
_BOUND = 1.05


def measure() -> Sequence[Row]:
    """A row for each project."""
    with (
        compile_fleet() as up,
        tempfile.TemporaryDirectory(prefix="corral-bench-") as place,
        compiles({"CORRAL_COMPILE__REMOTE__SCHEDULER": up.url}) as ours,
    ):
        return [row for project in projects(Path(place)) for row in _measured(up.process.pid, ours, *project)]


def _measured(up: int, ours: Compiles, name: str, directory: Path, targets: tuple[str, ...]) -> list[Row]:
    plain = Tool("plain", (), {"PATH": os.environ["PATH"], "HOME": str(directory)})
    corral = Tool("corral cc", (str(WRAPPER),), ours.environment)
    make(corral, directory, targets, flags=["-DTURN=0"])  # sandboxes, connections, the worker's look at the tool chain
    took: dict[str, list[float]] = {plain.name: [], corral.name: []}
    seen = _remote_runs(ours)
    before = _processor_s(up, ours.daemon)
    for turn in range(1, _TURNS + 1):
        for tool in (plain, corral):
            began_s = time.perf_counter()
            make(tool, directory, targets, flags=[f"-DTURN={turn}"])
            took[tool.name].append(time.perf_counter() - began_s)
    by_workers, here = (now - then for now, then in zip(_remote_runs(ours), seen, strict=True))
    spent_ms = {
        who: (now_s - before[who]) / max(1, by_workers) * 1000 for who, now_s in _processor_s(up, ours.daemon).items()
    }
    what = f"{name}, make -j2, {by_workers} of {by_workers + here} compiles in a sandbox of this machine's worker"
    parts = ", ".join(f"{who} {each_ms:.1f}" for who, each_ms in spent_ms.items())
    return [
        at_most(what, median(took[corral.name]), plain.name, median(took[plain.name]), times=_BOUND),
        Row(
            what=f"the same: processor time of one compile beside sandbox and compiler, in ms: {parts}",
            ours=f"{sum(spent_ms.values()):.1f} ms",
            against="",
            ratio="",
            bound="",
            ok=None,
        ),
    ]


def _processor_s(up: int, daemon: int) -> dict[str, float]:
    """Processor time so far, by process; that of the daemon's ended children is of preprocessors."""
    spent: dict[str, float] = {}
    for child in psutil.Process(up).children():
        who = next((role for role in ("scheduler", "worker") if role in child.cmdline()), None)
        if who is not None:
            spent[who] = sum(child.cpu_times()[:2])
    times = psutil.Process(daemon).cpu_times()
    return spent | {"daemon": sum(times[:2]), "preprocessor": sum(times[2:4])}


def _remote_runs(ours: Compiles) -> tuple[int, int]:
    """How many compiles a worker ran so far, and how many ran here."""
    ours.events()
    outcomes = [event.outcome for event in read_journal(ours.store, since_s=0)]
    return outcomes.count(Outcome.REMOTE_RUN), outcomes.count(Outcome.LOCAL_RUN)
