"""What an input root of a thousand files adds to an action, beside what hard links to them cost `cp`.

The same root again, one with one file changed, and one that the worker has never seen.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import uvloop

from bench.actions import execute, upload
from bench.report import Row, milliseconds, p50
from bench.sandboxes import timed
from bench.server import running
from corral.actions.model import Command
from corral.testing.actions import BuiltAction, Inputs, build_action
from corral.testing.processes import free_ports
from corral.wire.reapi.remote_execution_pb2_grpc import ExecutionStub

_DIRECTORIES: Final = 50
_FILES: Final = 20
_ROUNDS: Final = 30
_WARM_UP: Final = 5
_TRUE: Final = Command(arguments=("/bin/true",))
_BOUND_S: Final = 0.010


def _root(salt: str = "", changed: str = "") -> Inputs:
    """1,000 small files in 50 directories: all others with another ``salt``, one other with ``changed``."""
    files: Inputs = {
        f"d{folder}/f{number}.h": f"{salt} {folder} {number}\n".encode() * 20
        for folder in range(_DIRECTORIES)
        for number in range(_FILES)
    }
    return {**files, "d0/f0.h": changed.encode()} if changed else files


def _kinds() -> dict[str, Callable[[int], Inputs]]:
    same = _root()
    return {
        "nothing": lambda _: {},
        "the same root": lambda _: same,
        "one file of 1,000 changed": lambda number: _root(changed=f"changed {number}"),
        "1,000 files that the worker has never seen": lambda number: _root(salt=f"new {number}"),
    }


async def _measured(address: str) -> dict[str, float]:
    """Seconds of an action, p50, by what its input root is; the kinds take turns."""
    took: dict[str, list[float]] = {kind: [] for kind in _kinds()}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ExecutionStub(channel)
        for number in range(_WARM_UP + _ROUNDS):
            for kind, inputs in _kinds().items():
                action = build_action(_TRUE, inputs(number), salt=f"{kind}{number}".encode())
                took[kind].append(await _timed(stub, channel, action))
    return {kind: p50(samples[_WARM_UP:]) for kind, samples in took.items()}


async def _timed(stub: ExecutionStub, channel: grpc.aio.Channel, action: BuiltAction) -> float:
    await upload(channel, [action])
    began_s = time.perf_counter()
    await execute(stub, action)
    return time.perf_counter() - began_s


def _hard_links() -> float:
    with tempfile.TemporaryDirectory() as folder:
        for path, content in _root().items():
            assert isinstance(content, bytes)
            (place := Path(folder) / "root" / path).parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        copies = [["cp", "-al", f"{folder}/root", f"{folder}/{number}"] for number in range(_ROUNDS)]
        return p50([timed(partial(subprocess.run, copy, check=True)) for copy in copies])


def measure() -> Sequence[Row]:
    """All rows of this page."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with running(f"reapi.address={address}"):
        took = uvloop.run(_measured(address))
    bare_s, empty_s = _hard_links(), took.pop("nothing")
    return [
        Row(
            what=f"what an input root adds to an action: {kind}, p50",
            ours=milliseconds(took_s - empty_s),
            against=f"cp -al of 1,000 files {milliseconds(bare_s)}",
            ratio=f"{(took_s - empty_s) / bare_s:.2f} ×",
            bound=f"< {_BOUND_S * 1000:g} ms" if kind == "the same root" else "",
            ok=took_s - empty_s < _BOUND_S if kind == "the same root" else None,
        )
        for kind, took_s in took.items()
    ]
