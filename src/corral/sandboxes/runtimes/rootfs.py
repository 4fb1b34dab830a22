"""Root directories that an OCI runtime can start from: a skeleton of mount points, and what is bound over it.

A prepared root holds whatever its image holds; nothing may be written to it, and its own /proc, /dev, /tmp and /run
must stay out. So every root gets a small directory of ours with one mount point per entry, and the agent beside them.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.kernel.errors import InvalidSpec
from corral.sandboxes.link import agent_path
from corral.sandboxes.runtimes import host_root
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.sealed import reachable

AGENT_INSIDE: Final = "/.corral-agent"
_OURS: Final = ("proc", "dev", "sys", "tmp", "work", "run")  # never taken from a given root


_SHOWN: Final = "shown"
_ENTRIES_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Root:
    """``directory`` to start from, and (source, path inside) of what is bound over it, read-only.

    ``show`` is (directory, place) when the sources are at a place where the launcher must show the directory first.
    """

    directory: Path
    binds: tuple[tuple[str, str], ...]
    show: tuple[str, str] | None = None


class Roots:
    """The roots of one runtime: made when first asked for, removed with ``close``.

    Attributes:
        place: a directory below which a sandbox's user may pass; box folders may lie here too.
    """

    def __init__(self, home: Home, name: str, *, uid: int | None) -> None:
        """``uid``: the least that must reach the roots; None when that is who we are. Raises SandboxFailed."""
        self._agent = agent_path()
        self._uid = uid
        self.place = _place(home, name, uid)
        self.boxes.mkdir(mode=0o711)
        (self.place / _SHOWN).mkdir(mode=0o755)
        self._made: dict[str, Root] = {}
        self.root("")  # a copy of half of /etc: not while somebody waits for a box

    @property
    def boxes(self) -> Path:
        """Where folders of boxes may lie."""
        return self.place / "box"

    def root(self, given: str) -> Root:
        """The root for ``SandboxSpec.root``. Raises InvalidSpec when it is no directory, or an empty one."""
        if given:
            directory = Path(given)
            if not directory.is_absolute() or not directory.is_dir():
                raise InvalidSpec(
                    f'root: "{given}" is not an absolute path of a directory on this worker', field="root"
                )
        if given not in self._made:
            skeleton = self.place / (f"given-{hashlib.sha256(given.encode()).hexdigest()[:20]}" if given else "host")
            self._made[given] = self._of_given(Path(given), skeleton) if given else self._of_host(skeleton)
        return self._made[given]

    def close(self) -> None:
        """Remove everything; idempotent. Boxes must have ended."""
        if self.place.exists():
            shutil.rmtree(self.place)

    def _of_host(self, skeleton: Path) -> Root:
        built = host_root.build(skeleton)
        self._finish(skeleton)
        return Root(built.directory, tuple((path, path) for path in built.binds))

    def _of_given(self, directory: Path, skeleton: Path) -> Root:
        if skeleton.exists():
            shutil.rmtree(skeleton)
        entries = sorted(directory.iterdir())
        if len(entries) > _ENTRIES_MAX:
            raise InvalidSpec(
                f'root: "{directory}" has {len(entries)} entries at its top; at most {_ENTRIES_MAX} are mounted',
                field="root",
            )
        skeleton.mkdir(mode=0o755)
        show = self._show(directory)
        source = Path(show[1]) if show else directory
        binds: list[tuple[str, str]] = []
        for entry in entries:
            point = skeleton / entry.name
            if entry.name in _OURS:
                continue
            if entry.is_symlink():
                point.symlink_to(os.readlink(entry))
                continue
            if entry.is_dir():
                point.mkdir(mode=0o755)
            elif entry.is_file():
                point.touch(mode=0o644)
            else:
                continue
            binds.append((str(source / entry.name), f"/{entry.name}"))
        if not binds:
            shutil.rmtree(skeleton)
            raise InvalidSpec(
                f'root: the directory "{directory}" is empty; a root holds at least /usr or /bin', field="root"
            )
        for name in ("proc", "dev", "tmp", "work"):
            (skeleton / name).mkdir(mode=0o755)
        self._finish(skeleton)
        return Root(skeleton, tuple(binds), show)

    def _show(self, directory: Path) -> tuple[str, str] | None:
        if self._uid is None or reachable(directory / "any", uid=self._uid, gid=self._uid):
            return None
        return str(directory), str(self.place / _SHOWN)

    def _finish(self, skeleton: Path) -> None:
        for name in ("tmp", "work"):
            (skeleton / name).chmod(0o1777)  # runc gives a tmpfs the mode of its mount point
        agent = skeleton / AGENT_INSIDE.lstrip("/")
        shutil.copyfile(self._agent, agent)
        agent.chmod(0o555)


def _place(home: Home, name: str, uid: int | None) -> Path:
    """In the worker's own directory, unless the box's user cannot reach it: then a public temporary one."""
    place = home.directory / f"roots-{name}"
    if uid is None or reachable(place, uid=uid, gid=uid):
        if place.exists():
            shutil.rmtree(place)  # a predecessor's; the home is ours now
        place.mkdir(mode=0o755)
        return place
    public = Path(tempfile.mkdtemp(prefix=f"corral-root-{os.getpid()}-"))
    public.chmod(0o711)
    home.adopt(public)
    return public
