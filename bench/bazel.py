"""217 small actions of a real Bazel: run by Corral, found in its cache, and beside Bazel's own local sandbox.

The workspace is 200 genrules and a C library, a program, tests and a generated header around them. Times are Bazel's
own ("Elapsed time"), so that the start of its server does not count; medians of rounds in which all take turns, after
one that does not count. Nobody is asked for anything while the machine is still busy with what came before.
"""

import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.report import Row, at_most, beside, p50
from corral.testing.bazel import Bazel, NoBazel, bazel_program, write_workspace
from corral.testing.casd import NoCasd, running_casd
from corral.testing.processes import CorralProcess, public_directory

_GENRULES = 200
_ACTIONS = _GENRULES + 17
_JOBS = "--jobs=8"
_COLD_BOUND, _CACHED_BOUND = 1.4, 0.27
_ROUNDS = 3  # Bazel's own code gets faster as it runs: local, remote and peer take turns
_QUIET_PERCENT, _QUIET_LOOK_S, _QUIET_WITHIN_S = 5.0, 0.5, 30.0
Times = tuple[float, float, float]
"""Seconds: cold, cached, cached with the least download."""
_ELAPSED = re.compile(r"^INFO: Elapsed time: ([0-9.]+)s", re.MULTILINE)


def measure() -> list[Row]:
    """The rows of Bazel; none, with the reason, where there is no Bazel."""
    try:
        program = bazel_program()
    except NoBazel as reason:
        print(f"no Bazel here: {reason}", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory(prefix="bench-bazel-", dir="/tmp") as home:
        workspace = Path(home) / "workspace"
        write_workspace(workspace, genrules=_GENRULES)
        with Bazel(program, Path(home), workspace) as bazel:
            bazel.run("build", "--nobuild", "//...")  # starts the server and reads the workspace
            _, *rounds = [(_local(bazel), _with_corral(bazel), _with_casd(bazel)) for _ in range(1 + _ROUNDS)]
    local_s = p50([local_s for local_s, _, _ in rounds])
    cold_s, cached_s, minimal_s = _medians([ours for _, ours, _ in rounds])
    rows = [
        at_most(f"Bazel, {_ACTIONS} actions, cold", cold_s, "local sandbox", local_s, times=_COLD_BOUND),
        at_most(f"Bazel, {_ACTIONS} actions, cached", cached_s, "local sandbox", local_s, times=_CACHED_BOUND),
        beside(f"Bazel, {_ACTIONS} actions, cached, least download", minimal_s, "local sandbox", local_s),
    ]
    if theirs := [peer for _, _, peer in rounds if peer is not None]:
        casd_cold_s, casd_cached_s, _ = _medians(theirs)
        rows.append(beside(f"Bazel, {_ACTIONS} actions, cold", cold_s, "casd", casd_cold_s))
        rows.append(beside(f"Bazel, {_ACTIONS} actions, cached", cached_s, "casd", casd_cached_s))
    return rows


def _local(bazel: Bazel) -> float:
    return _timed(bazel, "--spawn_strategy=sandboxed", "--genrule_strategy=sandboxed")


def _with_corral(bazel: Bazel) -> Times:
    settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=127.0.0.1:0")
    with public_directory() as home:
        corral = CorralProcess("up", home, *settings)
        try:
            corral.start()
            return _cold_and_cached(bazel, corral.reapi)
        finally:
            corral.stop()


def _with_casd(bazel: Bazel) -> Times | None:
    try:
        with running_casd(executes=True) as casd:
            return _cold_and_cached(bazel, casd.address)
    except NoCasd as reason:
        print(f"no casd here: {reason}", file=sys.stderr)
        return None


def _cold_and_cached(bazel: Bazel, address: str) -> Times:
    """Against a server that knows nothing yet."""
    remote = f"--remote_executor=grpc://{address}"
    cold_s = _timed(bazel, remote, expect="remote")
    cached_s = _timed(bazel, remote, expect="remote cache hit")
    minimal_s = _timed(bazel, remote, "--remote_download_minimal", expect="remote cache hit")
    return cold_s, cached_s, minimal_s


def _medians(rounds: Sequence[Times]) -> Times:
    cold_s, cached_s, minimal_s = (p50(column) for column in zip(*rounds, strict=True))
    return cold_s, cached_s, minimal_s


def _timed(bazel: Bazel, *arguments: str, expect: str = "") -> float:
    """Seconds of a test of everything from nothing; checks where the actions ran."""
    bazel.run("clean")
    _wait_quiet()
    done = bazel.run("test", _JOBS, *arguments, "//...")
    if done.status or (expect and set(done.processes) != {expect}):
        raise SystemExit(f"Bazel did not do what is measured (ran: {done.processes}):\n{done.words[-2000:]}")
    return _elapsed(done.words)


def _wait_quiet() -> None:
    """Until the machine is idle: servers that fill their pools, files that are removed, code that is compiled."""
    until_s = time.monotonic() + _QUIET_WITHIN_S
    while psutil.cpu_percent(_QUIET_LOOK_S) > _QUIET_PERCENT and time.monotonic() < until_s:
        pass


def _elapsed(words: str) -> float:
    times: Sequence[str] = _ELAPSED.findall(words)
    return float(times[-1])
