"""A blob of 2 GiB through the whole scheduler, in and out: how fast beside `cp`, and how much memory."""

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
import uvloop

from bench.report import Row, beside
from bench.server import Server, running
from corral.client import Corral
from corral.kernel.digest import Digest, Digester

_BYTES = 2 * 2**30
_PIECE = bytes(range(256)) * 4096
_MEMORY_BOUND_MIB = 64.0
_TENANT = ""
"""REST takes the tenant from the token."""


async def _content() -> AsyncIterator[bytes]:
    for _ in range(_BYTES // len(_PIECE)):
        yield _PIECE


async def _in_and_out(url: str, digest: Digest) -> tuple[float, float]:
    async with Corral(url) as corral:
        began_s = time.perf_counter()
        await corral.blobs.write(_TENANT, digest, _content())
        written_s = time.perf_counter()
        received = 0
        async for piece in corral.blobs.read(_TENANT, digest):
            received += len(piece)
        if received != _BYTES:
            raise RuntimeError(f"{received} bytes came back of {_BYTES}")
        return written_s - began_s, time.perf_counter() - written_s


def _copy(folder: Path) -> float:
    """Seconds that writing as much into a file takes, with fsync, as the store does."""
    began_s = time.perf_counter()
    with (folder / "bare").open("wb") as file:
        for _ in range(_BYTES // len(_PIECE)):
            file.write(_PIECE)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began_s


def _memory(process: psutil.Process, *, peak: bool) -> int:
    key = "VmHWM:" if peak else "VmRSS:"
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split(key)[1].split()[0]) * 1024


def _scheduler(server: Server) -> psutil.Process:
    return next(child for child in server.children if "scheduler" in child.cmdline())


def measure() -> Sequence[Row]:
    """Two rows of speed and one of memory."""
    digester = Digester()
    for _ in range(_BYTES // len(_PIECE)):
        digester.update(_PIECE)
    folder = Path(tempfile.mkdtemp(prefix="corral-bench-"))
    try:
        bare_s = _copy(folder)
    finally:
        shutil.rmtree(folder)
    with running() as server:
        scheduler = _scheduler(server)
        before = _memory(scheduler, peak=False)
        Path(f"/proc/{scheduler.pid}/clear_refs").write_text("5")  # the peak counts from now
        in_s, out_s = uvloop.run(_in_and_out(server.url, digester.digest()))
        grown_mib = (_memory(scheduler, peak=True) - before) / 2**20
    return [
        beside("a 2 GiB blob in over REST, verified, durable", in_s, "written to a file, with fsync", bare_s),
        beside("the same blob out again", out_s, "the same", bare_s),
        Row(
            what="memory of the scheduler at its most meanwhile, above before",
            ours=f"{grown_mib:.0f} MiB",
            against="",
            ratio="",
            bound=f"< {_MEMORY_BOUND_MIB:.0f} MiB",
            ok=grown_mib < _MEMORY_BOUND_MIB,
        ),
    ]
