"""From a compile that has run to a stored result: what did it read, is it safe to keep, under which keys.

Blocking; runs in a thread. The outputs were copied before the wrapper went on; what was read is hashed here, and a
file that changed since the compile began makes the result worthless.
"""

import os
import subprocess
from collections.abc import Sequence
from stat import S_ISREG
from typing import Final

import blake3
import msgspec

from corral.compile import closure, key
from corral.compile.capture import Capture, Source, again, read_graph
from corral.compile.files import FileEntry, FileTable, open_unblocked, read_whole
from corral.compile.frames import Report
from corral.compile.gathering import Compiled, gather
from corral.compile.host import local_date
from corral.compile.model import Bypass, IncludeSet, OutputFile, Result
from corral.compile.plan import Plan
from corral.compile.store import ResultStore
from corral.kernel.errors import CorralError

_CLOCK_SLACK_NS: Final = 1_000_000_000
_AGAIN_S: Final = 120.0


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one run.

    Attributes:
        why: why the result was not stored, "" when it was.
        entries: files that were hashed, for the daemon's table.
    """

    why: str
    include_set: IncludeSet | None = None
    result_key: str = ""
    entries: tuple[FileEntry, ...] = ()


class Outputs(msgspec.Struct, frozen=True):
    """Copies of what a run wrote, by role, and the permissions before the umask."""

    files: dict[str, bytes]
    modes: dict[str, int]


def collect(plan: Plan, report: Report, *, object_bytes: int) -> Outputs | str:
    """Copy the outputs, before the wrapper goes on and the next line of make changes them; or why that cannot be."""
    if not report.whole:
        return "its messages are too long"
    files: dict[str, bytes] = {}
    modes: dict[str, int] = {}
    for role, path in plan.targets.items():
        try:
            descriptor = open_unblocked(path)
            try:
                found = os.fstat(descriptor)
                if not S_ISREG(found.st_mode) or found.st_size > object_bytes:
                    return f"{path} is no regular file, or too large"
                files[role] = read_whole(descriptor, found.st_size)
            finally:
                os.close(descriptor)
        except OSError as error:
            return f"{path}: {error.strerror}"
        modes[role] = 0o777 if found.st_mode & 0o100 else 0o666
    return Outputs(files, modes)


class NotKept(Exception):
    """This result must not be stored; the text says why."""


def keep(
    plan: Plan,
    capture: Capture,
    report: Report,
    outputs: Outputs,
    *,
    started_ns: int,
    now_s: float,
    table: FileTable,
    store: ResultStore,
) -> Kept:
    """Store what a run left, if that is safe."""
    files = outputs.files
    entries: list[FileEntry] = []
    try:
        _check_clock(report)
        names = _names(plan, capture, report, files)
        included = include_set(plan, names, files, table, entries, started_ns=started_ns, now_s=now_s)
        result_key = key.result_key(plan.request_key, included)
        stored = {role: stored_bytes(role, data, plan.root) for role, data in files.items()}
        result = Result(
            files=tuple(
                OutputFile(
                    role=role,
                    digest=blake3.blake3(data).hexdigest(),
                    size_bytes=len(data),
                    mode=outputs.modes.get(role, 0o666),
                )
                for role, data in stored.items()
            ),
            stdout=closure.store_dependencies(report.stdout, root=plan.root),
            stderr=closure.store_dependencies(report.stderr, root=plan.root),
            coloured=capture.coloured,
            duration_s=report.lasted_ns / 1e9,
        )
        store.put(plan.request_key, result_key, included, result, stored)
    except NotKept as refusal:
        return Kept(why=str(refusal), entries=tuple(entries))
    except CorralError as error:
        return Kept(why=error.message, entries=tuple(entries))
    return Kept(why="", include_set=included, result_key=result_key, entries=tuple(entries))


def stored_bytes(role: str, data: bytes, root: str) -> bytes:
    """Make rules are stored without the place of the checkout; everything else as it is."""
    return closure.store_dependencies(data, root=root) if role == "dependencies" else data


def include_set(
    plan: Plan,
    names: Sequence[str],
    files: dict[str, bytes],
    table: FileTable,
    entries: list[FileEntry],
    *,
    started_ns: int,
    now_s: float,
) -> IncludeSet:
    """What was read, hashed. Adds to ``entries``. Raises NotKept."""

    def look(path: str) -> FileEntry | None:
        entry = table.read(path)
        if entry is not None:
            entries.append(entry)
        return entry

    compiled = Compiled(
        invocation=plan.invocation,
        cacheable=plan.cacheable,
        environment=plan.environment,
        cwd=plan.cwd,
        root=plan.root,
        listed=names,
        objects=[data for role, data in files.items() if role != "dependencies"],
        started_ns=started_ns,
        today=local_date(now_s, plan.environment.get("TZ", "")),
    )
    found = gather(compiled, look=look, exists=os.path.lexists)
    if isinstance(found, Bypass):
        raise NotKept(f"{found.reason.value}: {found.detail}")
    return found


def _check_clock(report: Report) -> None:
    """Whether a file changed meanwhile is told by times; they are worthless when the clock was set."""
    if abs((report.ended_ns - report.began_ns) - report.lasted_ns) > _CLOCK_SLACK_NS:
        raise NotKept("the clock was set while it ran")


def _names(plan: Plan, capture: Capture, report: Report, files: dict[str, bytes]) -> Sequence[str]:
    match capture.source:
        case Source.NONE:
            return ()
        case Source.MEMORY:
            return _rules(report.dependencies)
        case Source.FILE:
            return _rules(files["dependencies"])
        case Source.TREE:
            return closure.take_tree(report.dependencies)[0]
        case Source.GRAPH:
            names = read_graph(report.dependencies.decode("utf-8", "surrogateescape"))
            return [name for name in names if os.path.isfile(plan.here(name))]
        case Source.AGAIN:
            return _rules(_ask_again(plan))


def _rules(text: bytes) -> Sequence[str]:
    names = closure.parse_dependencies(text.decode("utf-8", "surrogateescape"))
    if not names:
        raise NotKept("the compiler did not say what it read")
    return names


def _ask_again(plan: Plan) -> bytes:
    environment: dict[str, str] = {**plan.search, **plan.environment}
    try:
        done = subprocess.run(
            [plan.argv[0], *again(plan.invocation, rules="-")],
            cwd=plan.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_AGAIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotKept("the compiler did not say what it reads") from error
    if done.returncode:
        raise NotKept("the compiler did not say what it reads")
    return done.stdout
