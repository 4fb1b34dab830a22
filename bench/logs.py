"""Live logs: how long a line takes from the command that writes it to readers far away, beside a bare pipe."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from statistics import quantiles

import uvloop

from bench.report import Row, milliseconds
from bench.server import running
from corral.client import Corral, TaskDefinition

_LINES = 1000
_EVERY_S = 0.02
_READERS = 20
_BOUND_S = 0.250
_COMMAND = ["sh", "-c", f"for i in $(seq {_LINES}); do date +%s%N; sleep {_EVERY_S}; done"]
"""Each line is the moment at which it was written, less the time that `date` takes to end."""


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line


async def _delays(pieces: AsyncIterator[bytes]) -> list[float]:
    return [time.time() - int(line) / 1e9 async for line in _lines(pieces)]


async def _live(url: str) -> list[float]:
    async with Corral(url) as corral:
        task = await corral.tasks.submit(TaskDefinition(payload={"command": _COMMAND}))
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(_delays(corral.logs.read(task.id, 0, follow=True))) for _ in range(_READERS)]
    found = [reader.result() for reader in readers]
    if any(len(each) != _LINES for each in found):
        raise RuntimeError(f"readers saw {[len(each) for each in found]} lines of {_LINES}")
    return [delay for each in found for delay in each]


async def _pipe() -> list[float]:
    process = await asyncio.create_subprocess_exec(*_COMMAND, stdout=asyncio.subprocess.PIPE)
    stdout = process.stdout
    if stdout is None:
        raise RuntimeError("there is no pipe")

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await stdout.read(65_536):
            yield piece

    delays = await _delays(pieces())
    await process.wait()
    return delays


def _p99(samples: Sequence[float]) -> float:
    return quantiles(samples, n=100)[-1]


def measure() -> Sequence[Row]:
    """One row for the 99th percentile, one for the median."""
    bare = uvloop.run(_pipe())
    with running() as server:
        ours = uvloop.run(_live(server.url))
    what = f"live log: {_LINES} lines at {1 / _EVERY_S:.0f}/s to {_READERS} readers, written to read"
    rows = []
    for name, of, bound_s in (("p50", lambda them: quantiles(them, n=2)[0], None), ("p99", _p99, _BOUND_S)):
        rows.append(
            Row(
                what=f"{what}, {name}",
                ours=milliseconds(of(ours)),
                against=f"a bare pipe {milliseconds(of(bare))}",
                ratio=f"{of(ours) / of(bare):.0f} ×",
                bound=f"< {bound_s * 1000:.0f} ms" if bound_s else "",
                ok=of(ours) < bound_s if bound_s else None,
            )
        )
    return rows
