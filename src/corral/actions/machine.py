"""What actions mean, decided purely: platforms, paths, trees, and how a command's end becomes a result."""

import difflib
import posixpath
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from corral.actions.model import (
    Action,
    ActionDirectory,
    ActionFile,
    ActionSubdirectory,
    ActionSymlink,
    Command,
    Ended,
)
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, TooLarge
from corral.kernel.units import format_size, parse_size
from corral.sandboxes.model import End, ExecResult, Size

NAME_BYTES_MAX: Final = 255
PATH_BYTES_MAX: Final = 4096
_TRUE: Final = frozenset(("true", "1", "yes", "on"))
_FALSE: Final = frozenset(("false", "0", "no", "off", ""))
_ALIASES: Final = {"container-image": "image", "dockernetwork": "network", "osfamily": "os", "isa": "arch"}
_KNOWN: Final = (
    *("image", "runtime", "network", "memory", "cpus", "processes", "files", "disk", "pool", "os", "arch"),
    "cache-silo-key",  # separates caches, and nothing else
)
_IMAGE_PREFIX: Final = "docker://"
_LIMITS: Final = frozenset((End.OUT_OF_MEMORY, End.PROCESS_LIMIT, End.DISK_FULL, End.FILE_LIMIT, End.OUTPUT_LIMIT))
_MISTAKES_MAX: Final = 20


# ---- platforms ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an action asks of its sandbox; None and "" mean the worker's default."""

    image: str = ""
    runtime: str = ""
    network: bool = False
    memory_bytes: int | None = None
    cpus: float | None = None
    processes: int | None = None
    files: int | None = None
    disk_bytes: int | None = None

    def size(self, default: Size) -> Size:
        """The limits asked for, over ``default``."""
        return Size(
            memory_bytes=self.memory_bytes or default.memory_bytes,
            cpus=self.cpus or default.cpus,
            processes=self.processes or default.processes,
            files=self.files or default.files,
            disk_bytes=self.disk_bytes or default.disk_bytes,
            open_files=default.open_files,
        )


def properties_of(action: Action, command: Command) -> dict[str, str]:
    """The properties that hold, by our names: the action's, or the command's where it has none."""
    found = {}
    for name, value in action.platform or command.platform:
        lower = name.strip().lower()
        found[_ALIASES.get(lower, lower)] = value.strip()
    return found


def with_pool(properties: Mapping[str, str], pools: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The properties over those of the pool that they name. Raises InvalidSpec when there is no such pool."""
    name = properties.get("pool", "")
    if name and name != "default" and name not in pools:
        known = ", ".join(sorted({*pools, "default"}))
        raise InvalidSpec(f'platform: there is no pool "{name[:60]}"; there are: {known}', field="pool")
    return {**pools.get(name, {}), **properties}


def read_platform(properties: Mapping[str, str]) -> Platform:
    """What the properties mean. Raises InvalidSpec with all mistakes."""
    mistakes: list[str] = []
    for name in properties:
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            known = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(_KNOWN)}"
            mistakes.append(f'platform: there is no property "{name[:60]}"; {known}')
    if (system := properties.get("os", "linux").lower()) != "linux":
        mistakes.append(f'platform: no worker runs the system "{system[:60]}"; all run linux')
    image = properties.get("image", "").removeprefix(_IMAGE_PREFIX)
    reading = _Reading(properties, mistakes)
    platform = Platform(
        image="" if image == "none" else image,
        runtime=properties.get("runtime", ""),
        network=reading.flag("network"),
        memory_bytes=reading.size("memory"),
        cpus=reading.number("cpus"),
        processes=reading.count("processes"),
        files=reading.count("files"),
        disk_bytes=reading.size("disk"),
    )
    _refuse(mistakes)
    return platform


class _Reading:
    """Reads properties and collects what is wrong with them."""

    def __init__(self, properties: Mapping[str, str], mistakes: list[str]) -> None:
        self._properties = properties
        self._mistakes = mistakes

    def flag(self, name: str) -> bool:
        value = self._properties.get(name, "").lower()
        if name == "network" and value == "standard":
            return True
        if value not in _TRUE | _FALSE:
            self._wrong(name, 'write "true" or "false"')
        return value in _TRUE

    def size(self, name: str) -> int | None:
        text = self._properties.get(name, "")
        if not text:
            return None
        try:
            size = parse_size(text, field=name)
        except InvalidSpec:
            size = 0
        if size <= 0:
            self._wrong(name, 'write a size such as "2GB"')
            return None
        return size

    def number(self, name: str) -> float | None:
        text = self._properties.get(name, "")
        try:
            value = float(text) if text else None
        except ValueError:
            value = -1.0
        if value is not None and not 0.01 <= value <= 4096:
            self._wrong(name, "write a number between 0.01 and 4096")
            return None
        return value

    def count(self, name: str) -> int | None:
        text = self._properties.get(name, "")
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= 100_000_000:
            self._wrong(name, "write a number between 1 and 100000000")
            return None
        return int(text)

    def _wrong(self, name: str, cure: str) -> None:
        self._mistakes.append(f'platform: {name} is "{self._properties.get(name, "")[:60]}"; {cure}')


def size_mistakes(size: Size, most: Size) -> list[str]:
    """Where a platform asks for more than a worker gives."""
    names = {"memory_bytes": "memory", "cpus": "cpus", "processes": "processes", "files": "files", "disk_bytes": "disk"}
    return [
        f"platform: {shown} {getattr(size, name)} is more than this worker gives ({getattr(most, name)})"
        for name, shown in names.items()
        if getattr(size, name) > getattr(most, name)
    ]


# ---- commands ----


def check_command(command: Command) -> None:
    """Raise InvalidSpec with everything that no sandbox could run."""
    mistakes = []
    if not command.arguments or not command.arguments[0]:
        mistakes.append("arguments: the command is empty; the first argument is the program")
    if any("\0" in argument for argument in command.arguments):
        mistakes.append("arguments: an argument holds a NUL byte")
    for name, value in command.environment:
        if not name or "=" in name or "\0" in name or "\0" in value:
            mistakes.append(f'environment_variables: "{name[:60]}" has an impossible name or value')
    for path in ("", *command.outputs):  # "" is the working directory itself
        try:
            below_root(command, path)
        except InvalidSpec as error:
            mistakes.append(error.message)
    _refuse(mistakes)


def below_root(command: Command, path: str) -> str:
    """A path of the command, relative to the input root and without dots; "" is the root itself.

    Raises InvalidSpec when it is absolute, or leaves the input root.
    """
    working = command.working_directory
    for given, field in ((working, "working_directory"), (path, "output_paths")):
        if given.startswith("/") or "\0" in given or _length(given) > PATH_BYTES_MAX:
            raise InvalidSpec(f'{field}: "{given[:100]}" is not a relative path', field=field)
    joined = posixpath.normpath(posixpath.join(working, path))
    if joined == ".." or joined.startswith("../"):
        field = "output_paths" if path else "working_directory"
        raise InvalidSpec(f'{field}: "{(path or working)[:100]}" leads out of the input root', field=field)
    return "" if joined == "." else joined


def parents_of(command: Command) -> tuple[str, ...]:
    """Directories below the root that must exist before the command starts, shortest first."""
    found = {below_root(command, "")}
    found.update(posixpath.dirname(below_root(command, path)) for path in command.outputs)
    found.update(below_root(command, path) for path in command.output_directories)
    found.discard("")
    return tuple(sorted(found))


# ---- trees ----


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeTotals:
    """What a tree adds up to, each node counted as often as it occurs."""

    files: int
    entries: int
    total_bytes: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeGuards:
    """What one tree may be at most."""

    entries: int
    total_bytes: int
    depth: int


def check_directory(directory: ActionDirectory) -> None:
    """Raise InvalidSpec when a name is not one component of a path, or two nodes have one name."""
    seen: set[str] = set()
    nodes: Iterable[ActionFile | ActionSubdirectory | ActionSymlink] = (
        *directory.files,
        *directory.directories,
        *directory.symlinks,
    )
    for node in nodes:
        name = node.name
        if name in seen:
            raise InvalidSpec(f'the input root has two entries named "{name[:100]}" in one directory', field="name")
        seen.add(name)
        if (
            name in ("", ".", "..")
            or "/" in name
            or "\0" in name
            or len(name.encode(errors="replace")) > NAME_BYTES_MAX
        ):
            raise InvalidSpec(
                f'"{name[:100]}" is not a name of a file; a name is one component of a path of at most '
                f"{NAME_BYTES_MAX} bytes",
                field="name",
            )
    for link in directory.symlinks:
        if not link.target or "\0" in link.target or _length(link.target) > PATH_BYTES_MAX:
            raise InvalidSpec(f'the symlink "{link.name[:100]}" has no usable target', field="target")


def total_of(root: Digest, directories: Mapping[Digest, ActionDirectory], guards: TreeGuards) -> TreeTotals:
    """Add up a tree whose directories are all there, each once, however often it occurs: a small tree may stand for
    billions of files.

    Raises:
        TooLarge: over a guard.
        InvalidSpec: a directory contains itself.
    """
    done: dict[Digest, TreeTotals] = {}
    open_now: set[Digest] = set()
    waiting = [root]
    while waiting:
        digest = waiting[-1]
        if digest in done:
            waiting.pop()
            continue
        below = [each.digest for each in directories[digest].directories]
        if todo := [each for each in below if each not in done]:
            open_now.add(digest)
            if not open_now.isdisjoint(todo):
                raise InvalidSpec("a directory of the input root contains itself", field="input_root_digest")
            if len(open_now) > guards.depth:
                raise TooLarge(f"the tree is deeper than {guards.depth} directories", limit="depth")
            waiting.append(todo[0])
            continue
        open_now.discard(digest)
        waiting.pop()
        done[digest] = _sum(directories[digest], [done[each] for each in below], guards)
    return done[root]


def _sum(directory: ActionDirectory, below: Collection[TreeTotals], guards: TreeGuards) -> TreeTotals:
    totals = TreeTotals(
        files=len(directory.files) + sum(each.files for each in below),
        entries=len(directory.files)
        + len(directory.directories)
        + len(directory.symlinks)
        + sum(each.entries for each in below),
        total_bytes=sum(each.digest.size_bytes for each in directory.files) + sum(each.total_bytes for each in below),
        depth=1 + max((each.depth for each in below), default=0),
    )
    if totals.entries > guards.entries:
        raise TooLarge(f"the tree has more than {guards.entries} entries", limit="entries")
    if totals.total_bytes > guards.total_bytes:
        raise TooLarge(f"the tree is larger than {format_size(guards.total_bytes)}", limit="total_bytes")
    if totals.depth > guards.depth:
        raise TooLarge(f"the tree is deeper than {guards.depth} directories", limit="depth")
    return totals


# ---- ends ----


def ended_as(result: ExecResult) -> Ended:
    """How the command's end is told."""
    if result.end is End.TIMED_OUT:
        return Ended.TIMED_OUT
    if result.end is End.NOT_STARTED:
        return Ended.NOT_STARTED
    if result.end in _LIMITS:
        return Ended.LIMIT
    return Ended.EXITED if result.end is End.EXITED else Ended.SIGNALED


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _refuse(mistakes: list[str]) -> None:
    if mistakes:
        shown = tuple(mistakes[:_MISTAKES_MAX])
        more = f" (and {len(mistakes) - 1} further mistakes)" if len(mistakes) > 1 else ""
        raise InvalidSpec(f"{shown[0]}{more}", mistakes=shown)
