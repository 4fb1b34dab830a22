"""Hard limits through control groups, whatever layout the machine has.

One parent group ``corral-<name>`` per data directory, one child per sandbox. Three layouts, found by trying:

* ``V2``: one cgroup2 tree with the memory, pids and cpu controllers (Linux ``admin-guide/cgroup-v2.rst``);
* ``V1``: one directory per controller under the cgroup mount (systemd's "hybrid" layout is one of these: its cgroup2
  tree has no controllers);
* ``NONE``: nothing is writable; only rlimits bound a sandbox. ``Cgroups.why`` says why.

Nothing here awaits, except removal, which must wait for the kernel to bury the dead. Creating or removing a
group costs about 0.2 ms. Joining one through ``cgroup.procs`` makes the kernel wait until no process of the machine is
within a fork (7 to 15 ms for three groups); a single thread that moves itself (``tasks``, which only V1 has) does not
wait (0.2 ms).
"""

import asyncio
import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from corral.sandboxes.model import Size

MOUNT: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = ("memory", "pids", "cpu")
CPU_PERIOD_US: Final = 100_000
PROCESSES_OF_OURS: Final = 4  # the box's monitor, the agent, and room for keepers to start
_REMOVE_TRIES: Final = 200
_REMOVE_PAUSE_S: Final = 0.01


class CgroupLayout(StrEnum):
    """How this machine's control groups can be used by us."""

    V2 = "v2"
    V1 = "v1"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """How often the kernel enforced a limit on a group since it was made, and its peak of memory."""

    out_of_memory: int = 0
    process_limit: int = 0
    memory_peak_bytes: int = 0


class Cgroup:
    """One sandbox's group: a directory in each tree of the layout. Made by ``Cgroups.create``."""

    def __init__(self, *, name: str, directories: dict[str, str], layout: CgroupLayout) -> None:
        self.name = name
        self._directories = directories
        self._layout = layout

    @property
    def join_files(self) -> tuple[str, ...]:
        """The files to which a process of one thread writes "0" to join the group."""
        return self._files("tasks" if self._layout is CgroupLayout.V1 else "cgroup.procs")

    def add(self, pid: int) -> None:
        """Move a process (with all its threads, without its children) into the group. Raises OSError."""
        for file in self._files("cgroup.procs"):
            _write(file, str(pid))

    def pids(self) -> tuple[int, ...]:
        """All processes in the group, as this process numbers them."""
        found: dict[int, None] = {}
        for file in self._files("cgroup.procs"):
            for line in _read(file).split():
                found[int(line)] = None
        found.pop(0, None)  # a process of another pid namespace, which we could not signal anyway
        return tuple(found)

    def counters(self) -> Counters:
        """What the kernel counted; zeros for what this layout does not tell."""
        memory, pids = self._directories.get("memory"), self._directories.get("pids")
        oom = peak = forks = 0
        if memory is not None:
            oom = _field(f"{memory}/memory.events", "oom_kill") or _field(f"{memory}/memory.oom_control", "oom_kill")
            peak = _number(f"{memory}/memory.peak") or _number(f"{memory}/memory.max_usage_in_bytes")
        if pids is not None:
            forks = _field(f"{pids}/pids.events", "max")
        return Counters(out_of_memory=oom, process_limit=forks, memory_peak_bytes=peak)

    def allow_memory(self, size_bytes: int) -> None:
        """Raise the group's limit to this. Raises OSError."""
        if (memory := self._directories.get("memory")) is None:
            return
        for name in ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes", "memory.max"):  # v1: the sum goes first
            if os.path.exists(file := f"{memory}/{name}"):
                _write(file, str(size_bytes))

    def kill(self) -> None:
        """Send SIGKILL to everything in the group; at once where the kernel offers it, else one by one.

        Who is told to die forks no more, so one by one is done when a look finds nobody new.
        """
        if self._layout is CgroupLayout.V2:
            for file in self._files("cgroup.kill"):
                with suppress(OSError):  # the directory is gone already, or a kernel before 5.14
                    _write(file, "1")
        told: set[int] = set()
        while fresh := set(self.pids()) - told:
            for pid in fresh:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            told |= fresh

    def _files(self, name: str) -> tuple[str, ...]:
        return tuple(f"{directory}/{name}" for directory in dict.fromkeys(self._directories.values()))

    async def remove(self) -> None:
        """Remove the group once its processes are buried; idempotent.

        Raises:
            OSError: EBUSY after 2 s: something in it cannot die.
        Cancellation: may be repeated.
        """
        for left in reversed(range(_REMOVE_TRIES)):
            try:
                for directory in dict.fromkeys(self._directories.values()):
                    with suppress(FileNotFoundError):
                        os.rmdir(directory)
            except OSError as error:
                if error.errno != errno.EBUSY or not left:
                    raise
                self.kill()  # a process that forked while we were killing
                await asyncio.sleep(_REMOVE_PAUSE_S)
            else:
                return


class Cgroups:
    """The parent group of one data directory, and the maker of its children.

    Attributes:
        layout: what was found.
        hard: which of memory, pids and cpu are limited by the kernel.
        why: one sentence about what is missing, "" when nothing is.
    """

    def __init__(self, *, parents: dict[str, Path], layout: CgroupLayout, why: str) -> None:
        self.layout = layout
        self.hard = frozenset(parents)
        self.why = why
        self._trees = {controller: str(parent) for controller, parent in parents.items()}
        self._directories = tuple(dict.fromkeys(self._trees.values()))

    @classmethod
    def open(cls, name: str, *, mount: Path = MOUNT) -> "Cgroups":
        """Make (or find) the parent group ``corral-<name>``; never fails: without groups the layout is NONE."""
        directory_name = f"corral-{name}"
        if (mount / "cgroup.controllers").exists():
            return _open_v2(directory_name, mount)
        return _open_v1(directory_name, mount)

    def create(self, name: str, size: Size) -> Cgroup | None:
        """Make a group with the limits of ``size``; None where there are no groups.

        Raises:
            OSError: the kernel refused; nothing is left behind.
        """
        if not self._trees:
            return None
        group = self._group(name)
        try:
            for directory in self._directories:
                os.mkdir(f"{directory}/{name}")
            for file, value in self._limits(name, size):
                _write(file, value)
        except OSError:
            for directory in self._directories:
                with suppress(OSError):
                    os.rmdir(f"{directory}/{name}")
            raise
        return group

    def leftovers(self) -> tuple[Cgroup, ...]:
        """Groups below the parent, whoever made them: after a crash, those of the predecessor."""
        names: dict[str, None] = {}
        for directory in self._directories:
            with suppress(OSError):
                names.update((child.name, None) for child in os.scandir(directory) if child.is_dir())
        return tuple(self._group(name) for name in sorted(names))

    def close(self) -> None:
        """Remove the parent group if it is empty; one with children stays for the next sweep."""
        for directory in self._directories:
            with suppress(OSError):
                os.rmdir(directory)

    def _group(self, name: str) -> Cgroup:
        directories = {controller: f"{parent}/{name}" for controller, parent in self._trees.items()}
        return Cgroup(name=name, directories=directories, layout=self.layout)

    def _limits(self, name: str, size: Size) -> Iterator[tuple[str, str]]:
        quota_us = max(1000, int(size.cpus * CPU_PERIOD_US))
        v2 = self.layout is CgroupLayout.V2
        if memory := self._trees.get("memory"):
            yield f"{memory}/{name}/{'memory.max' if v2 else 'memory.limit_in_bytes'}", str(size.memory_bytes)
            # memory and swap together: without it a sandbox at its limit would swap the machine to a halt
            swap = f"{memory}/{name}/{'memory.swap.max' if v2 else 'memory.memsw.limit_in_bytes'}"
            if os.path.exists(swap):
                yield swap, "0" if v2 else str(size.memory_bytes)
        if pids := self._trees.get("pids"):
            yield f"{pids}/{name}/pids.max", str(size.processes + PROCESSES_OF_OURS)
        if cpu := self._trees.get("cpu"):
            if v2:
                yield f"{cpu}/{name}/cpu.max", f"{quota_us} {CPU_PERIOD_US}"
            else:
                yield f"{cpu}/{name}/cpu.cfs_period_us", str(CPU_PERIOD_US)
                yield f"{cpu}/{name}/cpu.cfs_quota_us", str(quota_us)


def _open_v2(directory_name: str, mount: Path) -> Cgroups:
    """Find the nearest group, from our own upwards, below which controllers can be given to children.

    A group with processes in it cannot give controllers to children, so it is usually our own group's parent.
    """
    why = f"no cgroup below {mount} can be made or given controllers"
    for ancestor in _ancestors(mount, _own_groups().get("", "/")):
        parent = ancestor / directory_name
        try:
            _delegate(ancestor)
            parent.mkdir(exist_ok=True)
            _delegate(parent)
        except OSError as error:
            why = f"cgroup {ancestor}: {error.strerror}"
            with suppress(OSError):
                parent.rmdir()
            continue
        present = set(_read(parent / "cgroup.subtree_control").split())
        hard: dict[str, Path] = {controller: parent for controller in CONTROLLERS if controller in present}
        return Cgroups(parents=hard, layout=CgroupLayout.V2, why=_missing(set(hard)))
    return Cgroups(parents={}, layout=CgroupLayout.NONE, why=why)


def _delegate(group: Path) -> None:
    """Give the children of ``group`` the controllers that we use and that it has. Raises OSError without memory."""
    have = set(_read(group / "cgroup.controllers").split())
    if "memory" not in have:
        raise OSError(errno.ENOENT, "has no memory controller")
    given = set(_read(group / "cgroup.subtree_control").split())
    wanted = [f"+{controller}" for controller in CONTROLLERS if controller in have - given]
    if wanted:
        _write(group / "cgroup.subtree_control", " ".join(wanted))


def _open_v1(directory_name: str, mount: Path) -> Cgroups:
    own = _own_groups()
    parents: dict[str, Path] = {}
    reasons: list[str] = []
    for controller in CONTROLLERS:
        parent, reason = _v1_parent(mount / controller, own.get(controller, "/"), directory_name)
        if parent is None:
            reasons.append(f"{controller}: {reason}")
        else:
            parents[controller] = parent
    if not parents:
        return Cgroups(parents={}, layout=CgroupLayout.NONE, why="; ".join(reasons))
    return Cgroups(parents=parents, layout=CgroupLayout.V1, why="; ".join(reasons))


def _v1_parent(tree: Path, own: str, directory_name: str) -> tuple[Path | None, str]:
    """Make the parent below our own group (its limits then hold for us too), else at the top of the tree."""
    if not (tree / "cgroup.procs").exists():
        return None, f"{tree} is not mounted"
    reason = ""
    for base in dict.fromkeys((tree / own.lstrip("/"), tree)):
        if not base.is_dir():
            continue
        parent = base / directory_name
        try:
            parent.mkdir(exist_ok=True)
        except OSError as error:
            reason = f"{base}: {error.strerror}"
            continue
        if os.access(parent / "cgroup.procs", os.W_OK):
            return parent, ""
        reason = f"{parent} is not writable"
    return None, reason


def _missing(hard: set[str]) -> str:
    missing = [controller for controller in CONTROLLERS if controller not in hard]
    return f"no {', '.join(missing)} controller" if missing else ""


def _ancestors(mount: Path, own: str) -> Iterator[Path]:
    group = mount / own.lstrip("/")
    while group != mount:
        if group.is_dir():
            yield group
        group = group.parent
    yield mount


def _own_groups() -> dict[str, str]:
    """Our own group in each hierarchy, by controller; "" is the cgroup2 tree (proc_pid_cgroup(5))."""
    groups: dict[str, str] = {}
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _write(file: Path | str, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _read(file: Path | str) -> str:
    try:
        with open(file, "rb", buffering=0) as opened:
            return opened.read().decode()
    except OSError:
        return ""


def _number(file: str) -> int:
    text = _read(file).strip()
    return int(text) if text.isdigit() else 0


def _field(file: str, name: str) -> int:
    for line in _read(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0
