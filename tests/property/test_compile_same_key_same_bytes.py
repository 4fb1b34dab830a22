"""Equal keys mean equal bytes: random sources, headers and flags, compiled with and without a cache.

The cache here is the smallest that uses the keys as the daemon does: request key → include sets → result key → bytes.
Each step changes a file, a flag or the checkout at random; every hit is compared with what the compiler makes.
"""

import hashlib
import os
import random
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from blake3 import blake3

from corral.compile import cacheability, closure, grammars, key, paths
from corral.compile.gathering import Compiled, gather
from corral.compile.model import Bypass, CompilerIdentity, FileTraits, IncludeSet

_FLAGS = (
    "-O0|-O1|-O2",
    "|-g|-g0|-g -ffile-prefix-map={root}=.|-gdwarf-4 -fdebug-prefix-map={root}=/src",
    "|-DA=1|-DA=2|-DA=1 -UA|-UA -DA=1|-DA|-DA=",
    "|-Wall|-Wall -Wextra",
    "-Iinc -Isub|-Isub -Iinc|-iquote sub -Iinc|-I{root}/inc -isystem sub",
    "|-MD -MF out.d|-MMD -MP -MF out.d|-MD -MT x.o -MF out.d",
    "|-fPIC|-fno-common|-funsigned-char",
    "|-include inc/first.h|-imacros sub/only.h",
    "|-DS=__FILE__",
)
_SOURCES = ("a.c", "{root}/a.c", "./a.c", "sub/b.c")


@dataclass
class _Cache:
    compiler: str
    sets: dict[str, list[IncludeSet]] = field(default_factory=dict)
    results: dict[str, tuple[bytes, bytes, bytes]] = field(default_factory=dict)
    hits: int = 0
    hits_elsewhere: int = 0
    kept_from: dict[str, str] = field(default_factory=dict)


def _write(root: Path, chance: random.Random, name: str) -> None:
    bodies = {
        "a.c": [
            '#include "x.h"\n#include <stdio.h>\nint a(void){return X;}\n',
            '#include "x.h"\n#include "y.h"\nconst char *f(void){return __FILE__;}\nint a=Y;\n',
            "#include <x.h>\n#ifdef A\nint s[sizeof(__FILE__)];\n#endif\nint a(void){int u;return X;}\n",
            '#if __has_include("late.h")\nint late;\n#endif\n#include <assert.h>\nvoid t(int q){assert(q);}\n',
        ],
        "sub/b.c": ['#include "y.h"\nint b=Y;\n', "#include \"x.h\"\nint b=X;char v='\\xff'>0;\n"],
        "inc/x.h": ["#define X 1\n", '#include "y.h"\n#define X Y\n'],
        "sub/x.h": ["#define X 3\n"],
        "x.h": ["#define X 5\n"],
        "inc/y.h": ["#define Y 1\n", "#define Y 2\n#ifndef A\nstatic int unused;\n#endif\n"],
        "sub/y.h": ["#define Y 7\n"],
        "inc/first.h": ["int first;\n", "#define A 9\n"],
        "sub/only.h": ["#define ONLY\n#define X0 1\n"],
        "late.h": ["\n"],
    }
    path = root / name
    optional = name in ("sub/x.h", "x.h", "sub/y.h", "late.h")
    if optional and path.exists() and chance.random() < 0.5:
        path.unlink()
        return
    path.parent.mkdir(exist_ok=True)
    path.write_text(chance.choice(bodies[name]))


_ALWAYS = ("a.c", "sub/b.c", "inc/x.h", "inc/y.h", "inc/first.h", "sub/only.h")
_SOMETIMES = ("sub/x.h", "x.h", "sub/y.h", "late.h")


def _compile(argv: list[str], cwd: Path) -> tuple[int, bytes, bytes, bytes]:
    (cwd / "out.o").unlink(missing_ok=True)
    (cwd / "out.d").unlink(missing_ok=True)
    done = subprocess.run(argv, cwd=cwd, capture_output=True, check=False, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
    read = [(cwd / name).read_bytes() if (cwd / name).exists() else b"" for name in ("out.o", "out.d")]
    return done.returncode, done.stderr, read[0], read[1]


def _hash(path: str) -> str:
    try:
        return blake3(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _valid(kept: IncludeSet, root: str) -> bool:
    return (
        kept.bound_to in ("", root)
        and all(_hash(paths.absolute(path, root=root)) == digest for path, digest in kept.files)
        and not any(os.path.lexists(paths.absolute(path, root=root)) for path in kept.absent)
    )


class _Hashes:
    def hash_of(self, path: str) -> tuple[str, FileTraits] | None:
        content = Path(path).read_bytes()
        return blake3(content).hexdigest(), closure.traits(content)


def _learn(compiled: Compiled, argv: list[str]) -> IncludeSet | Bypass:
    """What the compile reads, by asking the compiler a second time."""
    plain = [word for word in argv if word not in ("-MD", "-MMD", "-MP")]
    listed = subprocess.run([*plain, "-MD", "-MF", "all.d"], cwd=compiled.root, capture_output=True, check=False)
    assert listed.returncode == 0
    names = closure.parse_dependencies((Path(compiled.root) / "all.d").read_text())
    return gather(
        replace(compiled, listed=names), hashes=_Hashes(), exists=os.path.lexists, touched_ns=lambda path: (0, 0)
    )


def _step(cache: _Cache, chance: random.Random, roots: list[Path], chosen: list[str]) -> None:
    """Change one thing, or only the checkout; then compile."""
    change = chance.random()
    if change < 0.3:
        name, seed = chance.choice(_ALWAYS + _SOMETIMES), chance.random()
        for each in roots if chance.random() < 0.7 else roots[:1]:
            _write(each, random.Random(seed), name)
    elif change < 0.6:
        at = chance.randrange(len(chosen))
        chosen[at] = chance.choice([*_FLAGS, "|".join(_SOURCES)][at].split("|"))
    root = chance.choice(roots)
    *flags, source = " ".join(chosen).replace("{root}", str(root)).split()
    argv = [cache.compiler, *flags, "-c", source, "-o", "out.o"]
    invocation = grammars.parse(argv)
    assert not isinstance(invocation, Bypass)
    cacheable = cacheability.judge(invocation, {})
    assert not isinstance(cacheable, Bypass), cacheable
    identity = CompilerIdentity(digest=cache.compiler, path=cache.compiler, vendor=None)
    inputs = key.key_inputs(invocation, cacheable, identity=identity, environment={}, cwd=str(root), root=str(root))
    request = key.request_key(inputs)
    status, stderr, made, rules = _compile(argv, root)
    if status != 0:
        return
    for kept in cache.sets.get(request, ()):
        if _valid(kept, str(root)):
            name = key.result_key(request, kept)
            cached_object, cached_rules, cached_stderr = cache.results[name]
            assert hashlib.sha256(cached_object).digest() == hashlib.sha256(made).digest(), (argv, kept)
            replayed = closure.replay_dependencies(cached_rules, root=str(root))
            assert closure.parse_dependencies(replayed.decode()) == closure.parse_dependencies(rules.decode())
            assert replayed.split(b":")[0] == rules.split(b":")[0]
            assert closure.replay_dependencies(cached_stderr, root=str(root)) == stderr
            cache.hits += 1
            cache.hits_elsewhere += cache.kept_from[name] != str(root)
            return
    compiled = Compiled(
        invocation=invocation,
        cacheable=cacheable,
        environment={},
        cwd=str(root),
        root=str(root),
        listed=(),
        objects=[made],
        started_ns=0,
        today="",
    )
    learned = _learn(compiled, argv)
    assert not isinstance(learned, Bypass), learned
    name = key.result_key(request, learned)
    cache.sets.setdefault(request, []).append(learned)
    cache.results[name] = (
        made,
        closure.store_dependencies(rules, root=str(root)),
        closure.store_dependencies(stderr, root=str(root)),
    )
    cache.kept_from[name] = str(root)


@pytest.mark.parametrize("compiler", ["gcc", "clang", "g++"])
def test_a_result_from_the_cache_is_what_the_compiler_would_make(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    chance = random.Random(int(os.environ.get("CORRAL_SEED", "7")))
    roots = [tmp_path / "one", tmp_path / "second-checkout"]
    for root in roots:
        (root / "sub").mkdir(parents=True)
        (root / paths.MARKER).touch()
        for name in _ALWAYS:
            _write(root, random.Random(1), name)
    cache = _Cache(compiler)

    chosen = [each.split("|")[0] for each in _FLAGS] + [_SOURCES[0]]

    for _ in range(int(os.environ.get("CORRAL_STEPS", "50"))):
        _step(cache, chance, roots, chosen)

    assert cache.hits > 5
    assert cache.hits_elsewhere > 1
