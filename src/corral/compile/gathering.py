"""From what a compiler listed to the include set that is kept, or the reason why none is: all checks in their order.

Nothing is read here but through ``look`` and ``exists``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from corral.compile import closure
from corral.compile.files import FileEntry
from corral.compile.model import Bypass, BypassReason, Cacheable, IncludeSet, Invocation
from corral.compile.paths import absolute

Look: TypeAlias = Callable[[str], FileEntry | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A compile that succeeded, and where.

    Attributes:
        listed: what the compiler says that it read, as it names it; () for ``closure.UNPREPROCESSED`` languages.
        objects: the contents of the object and of all side files.
        started_ns: wall time just before the compiler was started; 0 to trust the files.
        today: the date where the compiler runs, ISO 8601; "" when nobody can tell.
        absent: see ``IncludeSet``, when it is known already; None to find it out.
    """

    invocation: Invocation
    cacheable: Cacheable
    environment: Mapping[str, str]
    cwd: str
    root: str
    listed: Sequence[str]
    objects: Sequence[bytes]
    started_ns: int
    today: str
    absent: Sequence[str] | None = None


def gather(compiled: Compiled, *, look: Look, exists: Callable[[str], bool]) -> IncludeSet | Bypass:
    """The include set of a compile. ``look`` gives a file by its absolute name, None when it cannot be read."""
    cwd, root, invocation = compiled.cwd, compiled.root, compiled.invocation
    files: Sequence[str] = closure.include_files(
        compiled.cacheable.source, compiled.listed, compiled.cacheable.reads, cwd=cwd, root=root
    )
    found: dict[str, FileEntry] = {}
    more: Sequence[str] = files
    while more:
        for path in more:
            entry = look(absolute(path, root=root))
            if entry is None:
                return Bypass(BypassReason.CHANGED, f"{path} cannot be read any more")
            if compiled.started_ns and closure.written_since(entry.changed_ns, compiled.started_ns):
                return Bypass(BypassReason.CHANGED, f"{path} changed while it was compiled")
            found[path] = entry
        traits = [each.traits for each in found.values()]
        files = tuple(found)
        more = closure.present(
            invocation, files=files, cwd=cwd, root=root, exists=exists, found=traits, environment=compiled.environment
        )
    refused = closure.refusal(compiled.cacheable, traits, files, exists=exists, root=root)
    if refused is not None:
        return refused
    moment = closure.moment(
        [(path, each.traits) for path, each in found.items()],
        today=compiled.today,
        epoch_set=bool(compiled.environment.get("SOURCE_DATE_EPOCH")),
        mtime_ns=lambda path: found[path].modified_ns,
    )
    if moment is None:
        return Bypass(BypassReason.TIME_MACRO, next(path for path, each in found.items() if _tells_time(each)))
    missing = compiled.absent
    if missing is None:
        missing = closure.absent(
            invocation, files=files, cwd=cwd, root=root, exists=exists, found=traits, environment=compiled.environment
        )
    if missing is None:
        return Bypass(BypassReason.PLACES, "headers may come from too many places")
    return IncludeSet(
        files=tuple((path, each.hash) for path, each in found.items()),
        absent=tuple(missing),
        bound_to=closure.bound_to(
            root,
            contents=compiled.objects,
            found=[(path, each.traits) for path, each in found.items()],
            invocation=invocation,
        ),
        moment=moment,
    )


def _tells_time(entry: FileEntry) -> bool:
    return entry.traits.time or entry.traits.date
