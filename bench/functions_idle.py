"""What a thousand deployed functions cost that nobody calls."""

import asyncio
import os
import time
from collections.abc import Sequence

import psutil

from bench.report import Row
from bench.server import Server, running
from corral.blobs.content import pieces_of
from corral.client import Corral, DeployRequest
from corral.kernel.digest import Digest
from corral.testing.function_load import printing

_FUNCTIONS = int(os.environ.get("CORRAL_BENCH_FUNCTIONS", "1000"))
_PROGRAMS = 10
_SETTLE_S = 5.0
_BOUND_MIB = 100.0


def measure() -> Sequence[Row]:
    """Resident memory that all processes have more than before; and how long one deployment takes."""
    with running("engine.front.listen=127.0.0.1:0") as server:
        asyncio.run(_deploy(server.url, "first", 1))
        time.sleep(_SETTLE_S)
        before_mib = _memory_mib(server)
        started_s = time.perf_counter()
        asyncio.run(_deploy(server.url, "idle", _FUNCTIONS))
        took_s = (time.perf_counter() - started_s) / _FUNCTIONS
        time.sleep(_SETTLE_S)
        more_mib = _memory_mib(server) - before_mib
    return [
        Row(
            what=f"functions: memory of {_FUNCTIONS} idle ones, all processes ({took_s * 1000:.0f} ms to deploy one)",
            ours=f"{more_mib:.0f} MiB",
            against="",
            ratio="",
            bound=f"< {_BOUND_MIB:.0f} MiB",
            ok=more_mib < _BOUND_MIB,
        )
    ]


async def _deploy(url: str, name: str, count: int) -> None:
    async with Corral(url) as corral:
        for number in range(count):
            program = printing(f"program {number % _PROGRAMS}")
            if number < _PROGRAMS:
                await corral.blobs.write("", Digest.of(program), pieces_of(program))
            request = DeployRequest(module=str(Digest.of(program)))
            await corral.functions.deploy(f"{name}-{number}", "v1", request)


def _memory_mib(server: Server) -> float:
    family = [server.supervisor, *server.supervisor.children(recursive=True)]
    return sum(_resident(each) for each in family) / 2**20


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
