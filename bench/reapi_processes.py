"""Hits of the action cache by one and by several processes at one port, beside one bare grpc.aio process.

The load comes from h2load (nghttp2), since a client in Python needs as much of a processor as a server does. On two
cores one process already takes what the load leaves; so for what several bring, each is held to a third of a processor.
16 connections, one call in flight on each.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc

from bench.processors import NoShares, held_to
from bench.reapi import IN_FLIGHT, action_digest, running_bare, store_result
from bench.report import Row
from corral.testing.processes import CorralProcess, public_directory
from corral.wire.reapi import remote_execution_pb2 as reapi

_METHOD = "build.bazel.remote.execution.v2.ActionCache/GetActionResult"
_CALLS = 12_000
_ROUNDS = 3
_RATE = re.compile(r"finished in .*, ([0-9.]+) req/s")
_DONE = re.compile(r"status codes: (\d+) 2xx")
_SHARE = 0.33
_GAIN = 1.8


def measure() -> Sequence[Row]:
    """The rows; none, with the reason, where there is no h2load."""
    program = shutil.which("h2load")
    if program is None:
        print("h2load is not here: install nghttp2-client", file=sys.stderr)
        return []
    with ExitStack() as stack:
        bare = stack.enter_context(running_bare())
        corrals = [_corral(stack, processes) for processes in (0, 1, 2)]
        body = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "request"
        message = reapi.GetActionResultRequest(action_digest=action_digest()).SerializeToString()
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        load = partial(_load, program, body)
        bare_rate, here, one = _best(load, [bare, corrals[0].reapi, corrals[1].reapi])
        try:
            for corral in corrals[1:]:
                stack.enter_context(held_to(_SHARE, _doors(corral)))
            one_held, two_held = _best(load, [corral.reapi for corral in corrals[1:]])
        except NoShares as reason:
            print(f"several processes are not measured: {reason}", file=sys.stderr)
            one_held = two_held = 0.0
    what = f"action cache hits, {IN_FLIGHT} connections"
    rows = [
        _row(f"{what} of h2load, the scheduler's own process", here, "bare grpc.aio, one process", bare_rate),
        _row(f"{what} of h2load, one process of the door's own", one, "bare grpc.aio, one process", bare_rate),
    ]
    if one_held:
        held = f"each held to {_SHARE:g} of a processor"
        rows.append(_row(f"{what}, two processes at one port, {held}", two_held, "one process", one_held, _GAIN))
    return rows


def _best(load: Callable[[str], float], addresses: Sequence[str]) -> list[float]:
    """The best of some rounds, in which the servers take turns."""
    rounds = [[load(address) for address in addresses] for _ in range(_ROUNDS)]
    return [max(rates) for rates in zip(*rounds, strict=True)]


def _corral(stack: ExitStack, processes: int) -> CorralProcess:
    home = stack.enter_context(public_directory())
    settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=127.0.0.1:0")
    corral = CorralProcess("scheduler", home, *settings, f"reapi.processes={processes}")
    corral.start()
    stack.callback(corral.stop)
    with grpc.insecure_channel(corral.reapi) as channel:
        store_result(channel)
    return corral


def _doors(corral: CorralProcess) -> list[int]:
    return [each.pid for each in corral.process.children() if "reapi_process" in each.cmdline()]


def _load(program: str, body: Path, address: str) -> float:
    headers = ("-H", "content-type: application/grpc", "-H", "te: trailers")
    done = subprocess.run(
        [
            program,
            *("-n", str(_CALLS), "-c", str(IN_FLIGHT), "-m", "1", "-d", str(body)),
            *headers,
            f"http://{address}/{_METHOD}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    rate, answered = _RATE.search(done.stdout), _DONE.search(done.stdout)
    if rate is None or answered is None or int(answered[1]) != _CALLS:
        raise SystemExit(f"h2load did not do what is measured:\n{done.stdout}")
    return float(rate[1])


def _row(what: str, ours: float, against: str, theirs: float, bound: float = 0.0) -> Row:
    return Row(
        what=what,
        ours=f"{ours:.0f}/s",
        against=f"{against} {theirs:.0f}/s",
        ratio=f"{ours / theirs:.2f} ×",
        bound=f"≥ {bound:g} ×" if bound else "",
        ok=ours >= bound * theirs if bound else None,
    )
