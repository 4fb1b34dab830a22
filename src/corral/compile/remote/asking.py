"""What a compile will read, found without compiling: the local preprocessor is asked, in a thread; the table of hashes
is the event loop's own and is used there only.
"""

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from corral.compile import closure
from corral.compile.capture import again
from corral.compile.gathering import Compiled, Look, gather
from corral.compile.host import local_date
from corral.compile.model import Bypass, IncludeSet
from corral.compile.ports import CompileRequest, FileHashes
from corral.compile.remote.layout import CannotShip
from corral.compile.searched import NO_VARIABLES

_ASK_S: Final = 120.0
_SEARCH: Final = ("PATH", "TMPDIR", "HOME")


async def ask_closure(request: CompileRequest, hashes: FileHashes, *, now_s: float) -> IncludeSet:
    """The include set of a compile, by -M. Raises CannotShip when it fails, or its result could not be kept."""
    if request.cacheable.language in closure.UNPREPROCESSED:
        return gathered(request, (), hashes.entry, now_s)
    done = await asyncio.to_thread(run_here, request, [request.argv[0], *again(request.invocation, rules="-")])
    return gathered(
        request, closure.parse_dependencies(done.stdout.decode("utf-8", "surrogateescape")), hashes.entry, now_s
    )


async def preprocess(request: CompileRequest, hashes: FileHashes, *, now_s: float) -> tuple[bytes, bytes, IncludeSet]:
    """What the preprocessor makes, the rules that the user asked for (b"" for none), and the include set.

    Raises CannotShip.
    """
    text, rules, names = await asyncio.to_thread(_preprocess, request)
    return text, rules, gathered(request, names, hashes.entry, now_s)


def _preprocess(request: CompileRequest) -> tuple[bytes, bytes, Sequence[str]]:
    with TemporaryDirectory(prefix="corral-cc-") as folder:
        wanted, all_rules = Path(folder, "wanted.d"), Path(folder, "all.d")
        plain = [word for word in again(request.invocation, rules=str(all_rules)) if word != "-M"]
        text = run_here(request, [request.argv[0], "-E", "-MD", *plain]).stdout
        rules = b""
        if request.invocation.dependency_file is not None:
            words = _rules_words(request, str(wanted))
            run_here(request, [request.argv[0], *words, *again(request.invocation, rules=str(wanted))[3:]])
            rules = wanted.read_bytes()
        return text, rules, closure.parse_dependencies(all_rules.read_text("utf-8", "surrogateescape"))


def _rules_words(request: CompileRequest, path: str) -> Sequence[str]:
    rules = request.invocation.dependency_file
    assert rules is not None
    targets = rules.targets or (("-MQ", request.cacheable.output),)
    words = ["-M" if rules.system_headers else "-MM", "-MF", path]
    words += [word for flag, value in targets for word in (flag, value)]
    return [*words, "-MP"] if rules.phony else words


def run_here(
    request: CompileRequest, argv: Sequence[str], variables: Mapping[str, str] = NO_VARIABLES
) -> "subprocess.CompletedProcess[bytes]":
    """Run the compiler of this machine in the compile's own surroundings. Blocking. Raises CannotShip when it fails."""
    search = {name: os.environ[name] for name in _SEARCH if name in os.environ}
    try:
        done = subprocess.run(
            argv,
            cwd=request.cwd,
            env={**search, **request.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotShip("the preprocessor could not be run here") from error
    if done.returncode:
        raise CannotShip("the preprocessor says no; the compiler will say why")
    return done


def gathered(
    request: CompileRequest,
    names: Sequence[str],
    look: Look,
    now_s: float,
    absent: Sequence[str] | None = None,
) -> IncludeSet:
    """The include set of a compile that reads ``names``; ``absent`` when it is known. Raises CannotShip."""
    compiled = Compiled(
        invocation=request.invocation,
        cacheable=request.cacheable,
        environment=request.environment,
        cwd=request.cwd,
        root=request.root,
        listed=names,
        objects=(),
        started_ns=0,
        today=local_date(now_s, request.environment.get("TZ", "")),
        absent=absent,
    )
    found = gather(compiled, look=look, exists=os.path.lexists)
    if isinstance(found, Bypass):
        raise CannotShip(f"{found.reason.value}: {found.detail}")
    return found
