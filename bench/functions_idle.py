"""What a thousand deployed functions cost that nobody calls; and how long a client waits from deploying one to its
first answer, through REST, scheduler, worker and front."""

import asyncio
import os
import time
from collections.abc import Sequence

import psutil

from bench.report import Row, bounded, p50
from bench.server import Server, running
from corral.blobs.content import pieces_of
from corral.client import Corral, DeployRequest, Scale
from corral.kernel.digest import Digest
from corral.testing.function_load import printing
from corral.testing.wasm_programs import assemble, wide

_FUNCTIONS = int(os.environ.get("CORRAL_BENCH_FUNCTIONS", "1000"))
_PROGRAMS = 10
_WIDE = 400  # functions: one MiB of code
_SETTLE_S = 5.0
_BOUND_MIB = 100.0


def measure() -> Sequence[Row]:
    """Resident memory that all processes have more than before; and how long one deployment takes."""
    with running("engine.front.listen=127.0.0.1:0") as server:
        asyncio.run(_deploy(server.url, "first", 1))
        compiled_s, cached_s = asyncio.run(_first_answers(server.url))
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
        ),
        bounded("functions: a client deploys a stored module of 1.0 MiB, compiles, first answer", compiled_s, 1.0),
        bounded("functions: the same from the cache of compiled code, median of 9", cached_s, 0.02),
    ]


async def _first_answers(url: str) -> tuple[float, float]:
    """From the request to deploy to the last byte of the first answer, of functions that nobody called before."""
    program, took = assemble(wide(_WIDE)), []
    async with Corral(url) as corral:
        await corral.blobs.write("", Digest.of(program), pieces_of(program))
        for number in range(10):
            started_s = time.perf_counter()
            request = DeployRequest(module=str(Digest.of(program)), scale=Scale(max=1))
            done = await corral.functions.deploy(f"large-{number}", "v1", request)
            async with corral.functions.call(done.function) as answer:
                assert answer.status == 200, answer.status
                b"".join([piece async for piece in answer.body])
            took.append(time.perf_counter() - started_s)
    return took[0], p50(took[1:])


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
