"""What a scheduler and a worker cost that have nothing to do."""

import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.report import Row
from bench.server import running

_SETTLE_S = 10.0
_WATCH_S = 30.0
_MEMORY_BOUND_MIB = 150.0
_CPU_BOUND_PERCENT = 0.5


def _ran_s(process: psutil.Process) -> float:
    """Processor time of its threads, to the nanosecond; ``cpu_times`` counts the ticks of 10 ms that it was seen in."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def measure() -> Sequence[Row]:
    """Resident memory and processor time of both, after a while of quiet. Sandboxes kept warm are not counted."""
    with running() as server:
        time.sleep(_SETTLE_S)
        before_s = sum(map(_ran_s, server.children))
        time.sleep(_WATCH_S)
        used_s = sum(map(_ran_s, server.children)) - before_s
        memory_mib = sum(child.memory_info().rss for child in server.children) / 2**20
        supervisor_mib = server.supervisor.memory_info().rss / 2**20
    percent = used_s / _WATCH_S * 100
    return [
        Row(
            what=f"idle: resident memory of scheduler + worker (supervisor: {supervisor_mib:.0f} MiB more)",
            ours=f"{memory_mib:.0f} MiB",
            against="",
            ratio="",
            bound=f"< {_MEMORY_BOUND_MIB:.0f} MiB",
            ok=memory_mib < _MEMORY_BOUND_MIB,
        ),
        Row(
            what=f"idle: processor of scheduler + worker, over {_WATCH_S:.0f} s",
            ours=f"{percent:.2f} %",
            against="",
            ratio="",
            bound=f"< {_CPU_BOUND_PERCENT} %",
            ok=percent < _CPU_BOUND_PERCENT,
        ),
    ]
