"""From what a compiler listed to the include set that is kept, or the reason why none is: all checks in their order.

Nothing is read here but through ``hashes`` and ``exists``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from corral.compile import closure
from corral.compile.model import Bypass, BypassReason, Cacheable, FileTraits, IncludeSet, Invocation
from corral.compile.paths import absolute
from corral.compile.ports import FileHashes


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A compile that succeeded, and where.

    Attributes:
        listed: what the compiler says that it read, as it names it; () for ``closure.UNPREPROCESSED`` languages.
        objects: the contents of the object and of all side files.
        started_ns: wall time just before the compiler was started; 0 to trust the files.
        today: the local date, ISO 8601.
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


def gather(
    compiled: Compiled,
    *,
    hashes: FileHashes,
    exists: Callable[[str], bool],
    touched_ns: Callable[[str], tuple[int, int]],
) -> IncludeSet | Bypass:
    """The include set of a compile.

    ``touched_ns`` gives mtime and ctime of an absolute path, wall nanoseconds. Both callables may raise OSError for a
    file that is gone, which is a bypass too: the closure changed while we looked.
    """
    try:
        return _gather(compiled, hashes, exists, touched_ns)
    except OSError as error:
        return Bypass(BypassReason.CHANGED, str(error.filename or error))


def _gather(
    compiled: Compiled,
    hashes: FileHashes,
    exists: Callable[[str], bool],
    touched_ns: Callable[[str], tuple[int, int]],
) -> IncludeSet | Bypass:
    cwd, root, invocation = compiled.cwd, compiled.root, compiled.invocation
    files: Sequence[str] = closure.include_files(
        compiled.cacheable.source, compiled.listed, compiled.cacheable.reads, cwd=cwd, root=root
    )
    found: list[tuple[str, FileTraits]] = []
    digests: list[tuple[str, str]] = []
    late = _look(files, found, digests, hashes, root)
    if late is not None:
        return late
    while more := closure.present(
        invocation,
        files=files,
        cwd=cwd,
        root=root,
        exists=exists,
        found=[each for _, each in found],
        environment=compiled.environment,
    ):
        if (late := _look(more, found, digests, hashes, root)) is not None:
            return late
        files = (*files, *more)
    traits = [each for _, each in found]
    if compiled.started_ns:
        for path in files:
            if closure.written_since(*touched_ns(absolute(path, root=root)), compiled.started_ns):
                return Bypass(BypassReason.CHANGED, path)
    refused = closure.refusal(compiled.cacheable, traits, files, exists=exists, root=root)
    if refused is not None:
        return refused
    moment = closure.moment(
        found,
        today=compiled.today,
        epoch_set=bool(compiled.environment.get("SOURCE_DATE_EPOCH")),
        mtime_ns=lambda path: touched_ns(absolute(path, root=root))[0],
    )
    if moment is None:
        return Bypass(BypassReason.TIME_MACRO, next(path for path, each in found if each.time))
    return IncludeSet(
        files=tuple(digests),
        absent=closure.absent(
            invocation, files=files, cwd=cwd, root=root, exists=exists, found=traits, environment=compiled.environment
        ),
        bound_to=closure.bound_to(root, contents=compiled.objects, found=found, invocation=invocation),
        moment=moment,
    )


def _look(
    files: Sequence[str],
    found: list[tuple[str, FileTraits]],
    digests: list[tuple[str, str]],
    hashes: FileHashes,
    root: str,
) -> Bypass | None:
    for path in files:
        known = hashes.hash_of(absolute(path, root=root))
        if known is None:
            return Bypass(BypassReason.CHANGED, path)
        digests.append((path, known[0]))
        found.append((path, known[1]))
    return None
