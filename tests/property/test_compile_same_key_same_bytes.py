"""Equal keys mean equal bytes: a source that feels every change, compiled with and without a cache.

The cache is the daemon's own but for the disk: plans, keys, include sets and the checks of a hit are its code; results
lie in a dictionary. From a few states of a project (flags, headers, environment, directory, checkout, mark) every
single change is made and unmade, then many at random; whatever is a hit is compared with what the compiler makes.

A key that forgets something is found here: planted were thirty-odd such mistakes, each by replacing one function of
``key``, ``closure`` or ``searched``; ``CORRAL_SEED`` and ``CORRAL_STEPS`` make longer walks.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from corral.compile import closure, frames, key
from corral.compile.capture import again
from corral.compile.files import FileTable
from corral.compile.identity import Identities
from corral.compile.model import CompilerIdentity
from corral.compile.paths import MARKER
from corral.compile.plan import LiveSet, Plan, moment_now
from corral.compile.storing import include_set
from corral.kernel.clock import SystemClock
from corral.testing.compiles import ask_frame

_FEELS: Final = r"""
#include "x.h"
#include <y.h>
#if __has_include("late.h")
int late;
#endif
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
#ifdef A
int a_is[sizeof(TEXT(A))];
const char *a = "[" TEXT(A) "]";
#endif
#ifdef FIRST
int first = FIRST;
#endif
#ifdef S
const char *s = S;
#endif
#ifdef B
const char *date = __DATE__;
#endif
const char *file(void) { return __FILE__; }
int size[sizeof(__FILE__)];
int x = X, y = Y, common;
char is_signed = '\xff' > 0, cxx = sizeof('a');
int unused_is_warned_of(void) { int unused; return x; }
int loop(int n) { int sum = 0; for (int i = 0; i < n; i++) sum += i * size[i]; return sum + common; }
"""
_SIZES: Final = """
#include <y.h>
int size[sizeof(__FILE__)];
#ifdef S
int text[sizeof(S)];
#endif
"""
"""Feels the length of names, and has none of them in its object."""
_SOURCES: Final = {
    "a.c": (_FEELS, _FEELS + "int more;\n", '#include "x.h"\nint quiet = X;\n', _SIZES),
    "inc/x.h": ("#define X 1\n", '#include "z.h"\n#define X Z\n'),
    "inc/y.h": ("#define Y 1\n", "#define Y 2\n#ifndef A\nstatic int unused;\n#endif\n"),
    "inc/z.h": ("#define Z 5\n", "#define Z 6\n"),
    "inc/first.h": ("#define FIRST 1\n", "#define A 9\n", "int first_h;\n"),
    "sub/only.h": ("#define FIRST 2\n", "#undef S\n"),
    "sub/x.h": (None, "#define X 3\n"),
    "sub/y.h": (None, "#define Y 4\n"),
    "sub/z.h": (None, "#define Z 7\n"),
    "x.h": (None, "#define X 8\n"),
    "late.h": (None, "\n"),
    "inc/late.h": (None, "\n"),
    "sub/late.h": (None, "\n"),
    "sub/first.h": (None, "#define FIRST 3\n"),
    "README": ("read me\n", "read me again\n"),
}
"""Versions of each file; None is absent. ``{up}`` in flags leads from the directory of the compile to the root."""
_FLAGS: Final = {
    "optimize": ("", "-O1", "-O2"),
    "debug": (
        "",
        "-g",
        "-g1",
        "-g0",
        "-g -ffile-prefix-map={root}=.",
        "-gdwarf-4 -fdebug-prefix-map={root}=/src",
        "-fmacro-prefix-map={root}=/m",
    ),
    "define": ("", "-DA=1", "-DA=2", "-DA=1 -UA", "-UA -DA=1", "-DA", "-DA=", "-DA=1 -DB", "-DB -DA=1"),
    "text": ("", "-DS=__FILE__", '-DS="{root}/q"', '-DS="q"'),
    "warn": ("", "-Wall", "-Wall -Wextra", "-Wall -Wno-unused-variable"),
    "include": (
        "-I{up}inc -I{up}sub",
        "-I{up}sub -I{up}inc",
        "-iquote {up}sub -I{up}inc",
        "-I{up}inc -iquote {up}sub",
        "-isystem {up}sub -I{up}inc",
        "-I{up}inc -idirafter {up}sub",
        "-I{root}/inc -isystem {root}/sub",
        "-I{up}inc",
        "-I. -I{root}/inc",
    ),
    "rules": (
        "",
        "-MD -MF out.d",
        "-MMD -MF out.d",
        "-MMD -MP -MF out.d",
        "-MD -MT $x.o -MF out.d",
        "-MD -MQ $x.o -MF out.d",
        "-MD -MT {root}/x.o -MF out.d",
    ),
    "feature": ("", "-fPIC", "-fno-common", "-fcommon", "-funsigned-char"),
    "forced": ("", "-include {up}inc/first.h", "-imacros {up}sub/only.h", "-include first.h"),
    "language": ("", "-x c++", "-std=c99"),
    "source": ("{up}a.c", "{root}/a.c", "./{up}a.c"),
    "output": ("out.o", "{up}made.o"),
}
_ENVIRONMENT: Final = (
    "",
    "CPATH=sub",
    "C_INCLUDE_PATH={root}/sub",
    "CPLUS_INCLUDE_PATH={root}/sub",
    "SOURCE_DATE_EPOCH=1",
    "SOURCE_DATE_EPOCH=99999999",
    "HOME=/nowhere",
)
_PLACES: Final = {"environment": _ENVIRONMENT, "directory": (".", "sub"), "checkout": ("0", "1"), "mark": ("1", "")}
_CHOICES: Final = {**_FLAGS, **_PLACES, **{name: versions for name, versions in _SOURCES.items()}}
_BASES: Final[tuple[Mapping[str, int], ...]] = (
    {"sub/y.h": 1, "define": 3},
    {"include": 1, "optimize": 2, "debug": 1, "rules": 1, "forced": 1, "warn": 1, "define": 1, "sub/y.h": 1},
    {"include": 2, "rules": 2, "forced": 3, "mark": 1, "sub/first.h": 1, "inc/x.h": 1, "define": 7, "environment": 4},
    {"include": 5, "source": 1, "text": 1, "directory": 1, "rules": 4, "environment": 1, "define": 5, "warn": 2},
    {"include": 4, "debug": 4, "source": 1, "define": 2, "language": 1, "environment": 3, "rules": 3, "text": 2},
    {"include": 6, "a.c": 3, "source": 1, "rules": 6, "text": 2, "feature": 3},
    {"include": 7, "directory": 1, "forced": 3, "environment": 2, "language": 1},
    {"include": 8, "source": 1, "sub/y.h": 1, "rules": 6},
)
"""Between them they make every choice that only some other choice makes matter."""
State = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Made:
    status: int
    stderr: bytes
    object: bytes
    rules: bytes


@dataclass
class _World:
    """Two checkouts of one project, and a cache for both."""

    compiler: str
    roots: tuple[Path, Path]
    identity: CompilerIdentity
    written: dict[str, object] = field(default_factory=dict)
    made: dict[tuple[int, ...], _Made] = field(default_factory=dict)
    listed: dict[tuple[int, ...], tuple[str, ...]] = field(default_factory=dict)
    sets: dict[str, list[LiveSet]] = field(default_factory=dict)
    results: dict[str, _Made] = field(default_factory=dict)
    hits: int = 0
    hits_elsewhere: int = 0
    origin: dict[str, str] = field(default_factory=dict)

    def go_to(self, state: State) -> None:
        """Make both checkouts what ``state`` says."""
        for name, versions in _SOURCES.items():
            text = versions[state.get(name, 0)]
            if self.written.get(name, ...) != text:
                self.written[name] = text
                for root in self.roots:
                    (root / name).unlink(missing_ok=True)
                    if text is not None:
                        (root / name).write_text(text)
        for root in self.roots:
            (root / MARKER).touch() if _chosen(state, "mark") else (root / MARKER).unlink(missing_ok=True)

    def plan(self, state: State) -> Plan:
        """The request, as the daemon understands it."""
        root = self.roots[state.get("checkout", 0)]
        directory = root / _chosen(state, "directory")
        there = partial(str.format, root=root, up="" if _chosen(state, "directory") == "." else "../")
        flags = [there(_chosen(state, name)) for name in _FLAGS if name not in ("source", "output")]
        words = [word for flag in flags for word in flag.split()]
        words += ["-c", there(_chosen(state, "source")), "-o", there(_chosen(state, "output"))]
        variables = [f"PATH={os.environ['PATH']}", "LC_ALL=C", *there(_chosen(state, "environment")).split()]
        frame = ask_frame(
            bytes(frames.TOKEN_BYTES),
            cwd=str(directory).removesuffix("/."),
            program=self.compiler,
            arguments=words,
            environment=variables,
        )[4:]
        plan = Plan(frames.read_ask(frames.read_head(frame), frame), str(root) if _chosen(state, "mark") else "")
        assert plan.bypass is None, (words, plan.bypass)
        plan.identify(self.identity, self.identity)
        return plan

    def compile(self, state: State, plan: Plan) -> _Made:
        """What the compiler makes."""
        name = _name(state)
        if name not in self.made:
            for path in plan.targets.values():
                Path(path).unlink(missing_ok=True)
            done = self._run(plan, plan.argv[1:])
            read = {role: _content(Path(path)) for role, path in plan.targets.items()}
            self.made[name] = _Made(done.returncode, done.stderr, read["object"], read.get("dependencies", b""))
        return self.made[name]

    def reads(self, state: State, plan: Plan) -> tuple[str, ...]:
        """What the compiler says that it reads."""
        name = _name(state)
        if name not in self.listed:
            done = self._run(plan, again(plan.invocation, rules="-"))
            self.listed[name] = closure.parse_dependencies(done.stdout.decode())
        return self.listed[name]

    def _run(self, plan: Plan, words: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", **plan.environment}
        return subprocess.run([plan.argv[0], *words], cwd=plan.cwd, capture_output=True, check=False, env=environment)

    def store(self, state: State) -> None:
        """Compile and keep it, as the daemon does."""
        self.go_to(state)
        plan = self.plan(state)
        made = self.compile(state, plan)
        if made.status:
            return
        now_s = SystemClock().now_s()
        files = {"object": made.object, "dependencies": made.rules}
        table = FileTable(closure.traits, SystemClock().now_s)
        included = include_set(plan, self.reads(state, plan), files, table, [], started_ns=0, now_s=now_s)
        name = key.result_key(plan.request_key, included)
        self.sets.setdefault(plan.request_key, []).append(LiveSet(included, name, plan.root))
        kept = partial(closure.store_dependencies, root=plan.root)
        self.results[name] = _Made(0, kept(made.stderr), made.object, kept(made.rules))
        self.origin[name] = plan.cwd

    def check(self, state: State) -> None:
        """Whatever the cache has for ``state`` is what the compiler makes."""
        self.go_to(state)
        plan = self.plan(state)
        now_s = SystemClock().now_s()
        table = FileTable(closure.traits, SystemClock().now_s)
        moment = partial(moment_now, plan, table, now_s=now_s)
        for kept in self.sets.get(plan.request_key, ()):
            live = LiveSet(kept.include_set, kept.result_key, plan.root)
            if not live.holds(table, plan.root, moment=moment, now_ns=int(now_s * 1e9)):
                continue
            stored, made = self.results[kept.result_key], self.compile(state, plan)
            here = partial(closure.replay_dependencies, root=plan.root)
            assert stored.object == made.object, f"another object: {plan.argv} {plan.environment}"
            assert here(stored.stderr) == made.stderr, f"other words: {plan.argv}"
            _check_rules(here(stored.rules), made.rules)
            self.hits += 1
            self.hits_elsewhere += self.origin[kept.result_key] != plan.cwd
            return

    def forget(self) -> None:
        """An empty cache."""
        self.sets.clear()


def _check_rules(replayed: bytes, made: bytes) -> None:
    assert replayed.split(b":")[0] == made.split(b":")[0], "another target"
    assert closure.parse_dependencies(replayed.decode()) == closure.parse_dependencies(made.decode()), "other rules"
    assert replayed.count(b":") == made.count(b":"), "other phony targets"


def _name(state: State) -> tuple[int, ...]:
    return tuple(state.get(each, 0) for each in _CHOICES)


def _chosen(state: State, name: str) -> str:
    return str(_CHOICES[name][state.get(name, 0)])


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _neighbours(state: State) -> Iterator[State]:
    for name, choices in _CHOICES.items():
        for choice in range(len(choices)):
            if choice != state.get(name, 0):
                yield {**state, name: choice}


def _world(compiler: str, folder: Path) -> _World:
    program = shutil.which(compiler)
    if program is None:
        pytest.skip(f"{compiler} is not installed")
    roots = (folder / "one", folder / "second-checkout")
    for root in roots:
        for name in ("inc", "sub"):
            (root / name).mkdir(parents=True)
    world = _World(program, roots, CompilerIdentity(digest="", path="", vendor=None))
    world.go_to({})
    world.identity = Identities.probe(world.plan({}).question)[0]
    return world


@pytest.mark.parametrize(("compiler", "base"), [*(("gcc", base) for base in range(len(_BASES))), ("clang", 3)])
def test_one_change_never_finds_what_the_compiler_would_not_make(compiler: str, base: int, tmp_path: Path) -> None:
    world, state = _world(compiler, tmp_path), _BASES[base]
    for neighbour in _neighbours(state):
        for one, other in ((neighbour, state), (state, neighbour)):
            world.forget()
            world.store(one)
            world.check(other)
        world.store(neighbour)
        world.check(state)

    assert world.hits > 5


@pytest.mark.parametrize("compiler", ["gcc", "clang", "g++"])
def test_a_walk_through_many_changes_never_does_either(compiler: str, tmp_path: Path) -> None:
    world = _world(compiler, tmp_path)
    chance = random.Random(int(os.environ.get("CORRAL_SEED", "7")))
    state: dict[str, int] = {}
    for _ in range(int(os.environ.get("CORRAL_STEPS", "60"))):
        change = chance.choice([*_CHOICES])
        state[change] = chance.randrange(len(_CHOICES[change]))
        world.check(state)
        world.store(state)
        world.check({**state, "checkout": 1 - state.get("checkout", 0)})

    assert world.hits > 5
    assert world.hits_elsewhere > 0
