"""Cached compiles: one hit, and whole rebuilds of two real C projects, beside ccache, sccache and the bare compiler.

Every figure is wall time and processor time of everything that took part, the caches' own servers included.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from bench.report import Row, at_most, beside
from corral.compile.control import tell
from corral.entry import WRAPPER
from corral.testing.compiles import compiles

_SERIAL = int(os.environ.get("BENCH_COMPILE_SERIAL", "200"))
_COLD = int(os.environ.get("BENCH_COMPILE_COLD", "3"))
_WARM = int(os.environ.get("BENCH_COMPILE_WARM", "5"))
_FETCH = Path(__file__).parents[1] / "examples" / "demo" / "fetch_debian_source.sh"
_C = """#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void) { return printf("%s", strerror(errno)); }
"""
_CXX = """#include <iostream>
#include <map>
#include <string>
#include <vector>
int main() { std::map<std::string, std::vector<int>> m; m["a"].push_back(1); std::cout << m.size(); }
"""


@dataclass(slots=True)
class Spent:
    """Wall time and processor time."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return statistics.median(self.wall_s)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_s)


@dataclass(frozen=True, slots=True)
class Tool:
    """A way to compile: words in front of the compiler, its environment, and the server whose time counts.

    ``settle`` waits until all is stored, ``empty`` forgets everything.
    """

    name: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    server: Callable[[], int] = lambda: 0
    settle: Callable[[], object] = lambda: None
    empty: Callable[[], object] = lambda: None


def measure() -> Sequence[Row]:
    """All rows; peers that are not installed are left out."""
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as name, compiles() as ours:
        place = Path(name)
        corral = Tool(
            "corral cc",
            (str(WRAPPER),),
            ours.environment,
            lambda: ours.daemon,
            lambda: tell(ours.environment, "flush"),
            lambda: _quietly([sys.executable, "-m", "corral", "cc", "clean"], ours.environment),
        )
        peers = [*_peers(place)]
        rows = _hits(place, corral, peers)
        for project in projects(place):
            rows += _rebuilds(project, corral, [peer for peer in peers if peer.name.startswith("ccache")])
        for peer in peers:
            if peer.name == "sccache":
                _quietly([peer.words[0], "--stop-server"], peer.environment)
        return rows


def _quietly(command: Sequence[str], environment: Mapping[str, str]) -> None:
    subprocess.run(command, env=dict(environment), capture_output=True, check=True)


def _peers(place: Path) -> Sequence[Tool]:
    found = []
    plain = {"PATH": os.environ["PATH"], "HOME": str(place)}
    if ccache := shutil.which("ccache"):
        environment = {"CCACHE_DIR": str(place / "ccache"), "CCACHE_DEPEND": "1", "CCACHE_NOINODECACHE": "1"}
        settings = plain | environment
        empty = partial(_quietly, [ccache, "--clear"], settings)
        found.append(Tool("ccache (depend mode)", (ccache,), settings, empty=empty))
    if sccache := shutil.which("sccache"):
        environment = {"SCCACHE_DIR": str(place / "sccache"), "SCCACHE_SERVER_UDS": str(place / "sccache.sock")}
        server = plain | environment | {"SCCACHE_IDLE_TIMEOUT": "0"}
        found.append(Tool("sccache", (sccache,), server, lambda: _pid_of("sccache")))
    return found


def _pid_of(name: str) -> int:
    """The server: the one of this name that is nobody's child any more."""
    pids = [one.pid for one in psutil.process_iter(["name"]) if one.info["name"] == name]
    return max(pids, default=0)


def _server_cpu_s(tool: Tool) -> float:
    pid = tool.server()
    if not pid:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _timed(tool: Tool, count: int, work: Callable[[], None]) -> Spent:
    """``work`` so many times; the servers' clocks tick in hundredths of a second, so their share is spread."""
    spent = Spent()
    server_s = _server_cpu_s(tool)
    for _ in range(count):
        before, began_s = os.times(), time.perf_counter()
        work()
        spent.wall_s.append(time.perf_counter() - began_s)
        after = os.times()
        spent.cpu_s.append(after.children_user + after.children_system - before.children_user - before.children_system)
    tool.settle()  # what is stored after the build has gone on counts, too
    share_s = (_server_cpu_s(tool) - server_s) / count
    mean_s = sum(spent.cpu_s) / count  # children's clocks are as coarse: the mean over all, not the median
    spent.cpu_s = [mean_s + share_s]
    return spent


def _hits(place: Path, corral: Tool, peers: Sequence[Tool]) -> list[Row]:
    (place / "a.c").write_text(_C)
    (place / "b.cc").write_text(_CXX)
    rows = []
    for what, words, wall_s, cpu_s in (
        ("C", ("gcc", "-O2", "-c", "a.c", "-o", "a.o"), 0.002, 0.003),
        ("C++, 4 STL headers", ("g++", "-O2", "-c", "b.cc", "-o", "b.o"), 0.004, 0.006),
    ):
        timed = {tool.name: _hit(tool, place, words) for tool in (corral, *peers)}
        ours = timed[corral.name]
        for peer in peers:
            theirs = timed[peer.name]
            rows.append(at_most(f"hit, {what}, wall", ours.wall, peer.name, theirs.wall))
            rows.append(at_most(f"hit, {what}, CPU", ours.cpu, peer.name, theirs.cpu))
        rows.append(at_most(f"hit, {what}, wall", ours.wall, "bound", wall_s))
        rows.append(at_most(f"hit, {what}, CPU", ours.cpu, "bound", cpu_s))
    return rows


def _hit(tool: Tool, place: Path, words: Sequence[str]) -> Spent:
    command = [*tool.words, *words]
    environment = dict(tool.environment)

    def compile_once() -> None:
        pid = os.posix_spawn(
            command[0],
            command,
            environment,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
        )
        _, status = os.waitpid(pid, 0)
        if status:
            raise RuntimeError(f"{tool.name} failed: {command}")

    before = Path.cwd()
    os.chdir(place)
    try:
        time.sleep(0.2)  # a source that was just written is cached by nobody
        for _ in range(3):
            compile_once()
            tool.settle()
        return _timed(tool, _SERIAL, compile_once)
    finally:
        os.chdir(before)


def projects(place: Path) -> Sequence[tuple[str, Path, tuple[str, ...]]]:
    """Directory and make's words of each; made up where Debian's sources cannot be had."""
    found = []
    for package, pattern, words in (
        ("mbedtls", "*mbedtls*/library", ("static",)),
        ("lua5.4", "lua-*/src", ("a",)),
    ):
        target = place / package
        done = subprocess.run(["sh", _FETCH, package, target], capture_output=True, check=False)
        for archive in target.glob("*.orig.tar.*") if done.returncode == 0 else ():
            subprocess.run(["tar", "-xf", archive, "-C", target], check=True)
        directories = [*target.glob(pattern)]
        if directories:
            (directories[0].parent / ".corral").touch()
            found.append((f"{package} ({len([*directories[0].glob('*.c')])} files)", directories[0], words))
    return found or [_made_up(place)]


def _made_up(place: Path) -> tuple[str, Path, tuple[str, ...]]:
    project = place / "made-up"
    project.mkdir()
    (project / ".corral").touch()
    for number in range(60):
        functions = "".join(f"int f{number}_{n}(int a) {{ return a * {n} + {number}; }}\n" for n in range(40))
        (project / f"part{number}.c").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{functions}")
    (project / "Makefile").write_text(
        "all: $(patsubst %.c,%.o,$(wildcard *.c))\n%.o: %.c\n\t$(CC) -O2 -c $< -o $@\nclean:\n\trm -f *.o\n"
    )
    return ("made up (60 files)", project, ("all",))


def _rebuilds(project: tuple[str, Path, tuple[str, ...]], corral: Tool, peers: Sequence[Tool]) -> list[Row]:
    name, directory, targets = project
    plain = Tool("plain", (), {"PATH": os.environ["PATH"], "HOME": str(directory)})
    tools = (plain, corral, *peers)
    cold = _in_turns(tools, directory, targets, count=_COLD, empty=True)
    warm = _in_turns(tools[1:], directory, targets, count=_WARM, empty=False)
    bare, ours, hot = cold["plain"], cold[corral.name], warm[corral.name]
    rows = [
        at_most(f"{name}, cold, CPU", ours.cpu, "plain", bare.cpu, times=1.03),
        beside(f"{name}, cold, wall", ours.wall, "plain", bare.wall),
        beside(f"{name}, warm, wall", hot.wall, "plain", bare.wall),
    ]
    for peer in peers:
        rows += [
            beside(f"{name}, cold, CPU", ours.cpu, peer.name, cold[peer.name].cpu),
            at_most(f"{name}, warm, wall", hot.wall, peer.name, warm[peer.name].wall),
            at_most(f"{name}, warm, CPU", hot.cpu, peer.name, warm[peer.name].cpu),
        ]
    return rows


def _in_turns(
    tools: Sequence[Tool], directory: Path, targets: Sequence[str], *, count: int, empty: bool
) -> Mapping[str, Spent]:
    """Whole rebuilds, one tool after the other, so that nobody pays alone for what the machine does meanwhile."""
    spent = {tool.name: Spent() for tool in tools}
    for _ in range(count):
        for tool in tools:
            if empty:
                tool.empty()
            once = _timed(tool, 1, partial(make, tool, directory, targets))
            spent[tool.name].wall_s += once.wall_s
            spent[tool.name].cpu_s += once.cpu_s
    return spent


def make(tool: Tool, directory: Path, targets: Sequence[str], *, flags: Sequence[str] = ()) -> None:
    """A whole build from nothing."""
    for command in (("clean",), targets):
        subprocess.run(
            ["make", "-s", "-j2", f"CC={' '.join((*tool.words, 'gcc', *flags))}", *command],
            cwd=directory,
            env=dict(tool.environment),
            stdout=subprocess.DEVNULL,
            check=True,
        )
