"""Why a compile was not found: what differs from the time before, for one source. Pure."""

from collections.abc import Iterable

import msgspec

from corral.compile.model import KeyInputs, Outcome


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The latest attempt for one source.

    Attributes:
        source, output: absolute paths.
        at_s: Unix time.
        why: the reason of a bypass, of a failed store, or "" .
        key: the result's key, "" when there is none.
        inputs: all but contents; None for a bypass that came before it was known.
        files: what was read: path (project-relative) to hash; empty for a bypass.
        worker: who ran it, "" for this machine.
        refused: why no worker did, "" when none was asked.
        execution: names the audit row of a worker's run.
        diffs: what had changed since the attempt before, unless this was a hit.
    """

    source: str
    output: str
    cwd: str
    root: str
    argv: tuple[str, ...]
    at_s: float
    outcome: Outcome
    why: str = ""
    key: str = ""
    request_key: str = ""
    compiler: str = ""
    image: str = ""
    worker: str = ""
    refused: str = ""
    execution: str = ""
    inputs: KeyInputs | None = None
    files: dict[str, str] = {}
    diffs: tuple["Diff", ...] = ()


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that changed. ``kind``: compiler, image, flag, environment, project, directory, source, header."""

    kind: str
    name: str = ""
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        name = f" {self.name}" if self.name else ""
        if not self.before:
            return f"{self.kind}{name} added" + (f": {self.after}" if self.kind not in ("header", "source") else "")
        if not self.after:
            return f"{self.kind}{name} removed" + (f": {self.before}" if self.kind not in ("header", "source") else "")
        return f"{self.kind}{name} changed" + (f": {_short(self.before)} -> {_short(self.after)}")


def diffs(before: Record | None, after: Record) -> tuple[Diff, ...]:
    """What changed, in the order image or compiler, flags, environment, project, directory, source, headers by name."""
    if before is None or before.inputs is None or after.inputs is None:
        return ()
    was, now = before.inputs, after.inputs
    found: list[Diff] = []
    if before.image != after.image:
        found.append(Diff(kind="image", before=before.image, after=after.image))
    elif was.identity != now.identity:
        found.append(
            Diff(
                kind="compiler",
                before=f"{before.compiler} {was.identity[:12]}",
                after=f"{after.compiler} {now.identity[:12]}",
            )
        )
    found += _flag_diffs(was.flags, now.flags)
    found += [
        Diff(
            kind="environment",
            name=name,
            before=dict(was.environment).get(name, ""),
            after=dict(now.environment).get(name, ""),
        )
        for name in sorted({name for name, _ in {*was.environment} ^ {*now.environment}})
    ]
    if (before.root, was.subdirectory, was.source) != (after.root, now.subdirectory, now.source):
        found.append(Diff(kind="project", before=_place(before), after=_place(after)))
    if was.directory != now.directory:
        found.append(Diff(kind="directory", before=was.directory, after=now.directory))
    if was.source == now.source:
        found += _file_diffs(now.source, *_comparable(before, after))
    return tuple(found)


def _comparable(before: Record, after: Record) -> tuple[dict[str, str], dict[str, str]]:
    """What each has read. An image's digest stands for the headers of its system, so they are compared with nothing."""
    if not (before.image or after.image):
        return before.files, after.files
    was, now = (
        {path: each for path, each in record.files.items() if not path.startswith("/")} for record in (before, after)
    )
    return was, now


def _place(record: Record) -> str:
    """Where the project begins, and what the source is called in it."""
    name = record.inputs.source if record.inputs is not None else ""
    return f"{name} in {record.root}" if record.root else name


def _flag_diffs(was: tuple[str, ...], now: tuple[str, ...]) -> list[Diff]:
    if was == now:
        return []
    removed, added = [*_without(was, now)], [*_without(now, was)]
    found = [Diff(kind="flag", before=_readable(each)) for each in removed]
    found += [Diff(kind="flag", after=_readable(each)) for each in added]
    return found or [Diff(kind="flag", name="order", before=_readable(" ".join(was)), after=_readable(" ".join(now)))]


def _without(these: Iterable[str], those: Iterable[str]) -> Iterable[str]:
    left = list(those)
    for each in these:
        if each in left:
            left.remove(each)
        else:
            yield each


def _readable(flag: str) -> str:
    return "".join(char if char.isprintable() else " " for char in flag).strip()


def _file_diffs(source: str, was: dict[str, str], now: dict[str, str]) -> list[Diff]:
    found = []
    if source in was and source in now and was[source] != now[source]:
        found.append(Diff(kind="source", name=source, before=was[source], after=now[source]))
    for path in sorted({*was, *now} - {source}):
        before, after = was.get(path, ""), now.get(path, "")
        if before != after:
            found.append(Diff(kind="header", name=path, before=before, after=after))
    return found


def _short(text: str) -> str:
    kind, colon, digits = text.rpartition(":")
    return kind + colon + digits[:12] if len(digits) == 64 else text


def reason(record: Record, before: Record | None) -> str:
    """One word for statistics: why this was no hit."""
    if before is None:
        return "first-time"
    if not record.diffs:
        return "evicted"  # nothing differs, so it was there once
    return record.diffs[0].kind
