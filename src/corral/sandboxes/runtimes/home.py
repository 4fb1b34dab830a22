"""The directory of one worker's sandboxes, and its control groups: what all runtimes of the worker share.

Layout: ``lock`` (held while the worker lives) · ``boxes/<id>.json`` (pid and birth of a box that no control group
remembers) · ``work/<id>/`` (folders of boxes that have no mounts of their own).
"""

import fcntl
import hashlib
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from corral.kernel.errors import Conflict
from corral.sandboxes.cgroups import Cgroups
from corral.sandboxes.runtimes.child import Child, birth_of


class BoxNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which process a box is; ``birth`` (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    birth: int


class Home:
    """Open it before the runtimes, close it after them. Its directory belongs to one worker at a time."""

    def __init__(self, directory: Path, *, cgroups: Cgroups | None = None) -> None:
        """Raises Conflict when another process holds the directory."""
        self.directory = directory.resolve()
        for folder in (self.directory, self.boxes, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise Conflict(
                f"another process runs its sandboxes in {self.directory}",
                cure="stop it, or give this worker another data directory",
            ) from error
        self._adopted: set[str] = set()
        self._alive: set[str] = set()
        name = hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]
        self.cgroups = Cgroups.open(name) if cgroups is None else cgroups

    @property
    def boxes(self) -> Path:
        """Where notes about boxes lie."""
        return self.directory / "boxes"

    @property
    def work(self) -> Path:
        """Where boxes without mounts of their own have their folders."""
        return self.directory / "work"

    def note(self, sandbox_id: str, child: Child) -> None:
        """Remember a box for the next worker, should this one die."""
        note = BoxNote(pid=child.pid, birth=birth_of(child.pid) or 0)
        (self.boxes / f"{sandbox_id}.json").write_bytes(msgspec.json.encode(note))

    def forget(self, sandbox_id: str) -> None:
        """The box is gone with everything that it had."""
        self._alive.discard(sandbox_id)
        (self.boxes / f"{sandbox_id}.json").unlink(missing_ok=True)

    def adopt(self, directory: Path) -> None:
        """Remember a directory outside of ours, for the next worker to remove, should this one die."""
        self._adopted.add(str(directory))
        with (self.directory / "adopted").open("a") as file:
            file.write(f"{directory}\n")

    def enter(self, sandbox_id: str) -> None:
        """A box of this worker begins; no sweep touches it."""
        self._alive.add(sandbox_id)

    async def sweep(self) -> int:
        """Kill and remove what a predecessor left; how many boxes. Boxes of this worker are not touched."""
        swept: set[str] = set()
        for group in self.cgroups.leftovers():
            if group.name in self._alive:
                continue
            group.kill()
            await group.remove()
            swept.add(group.name)
        for file in self.boxes.glob("*.json"):
            if file.stem in self._alive:
                continue
            with suppress(msgspec.DecodeError):  # half written: its process died with the worker's link
                note = msgspec.json.decode(file.read_bytes(), type=BoxNote)
                if note.birth and birth_of(note.pid) == note.birth:
                    with suppress(ProcessLookupError):
                        os.kill(note.pid, signal.SIGKILL)
            file.unlink(missing_ok=True)
            swept.add(file.stem)
        for folder in self.work.iterdir():
            if folder.name in self._alive:
                continue
            shutil.rmtree(folder)
            swept.add(folder.name)
        self._remove_adopted()
        return len(swept)

    def _remove_adopted(self) -> None:
        """Only what still looks like ours: the list is trusted, the names in /tmp are not."""
        file = self.directory / "adopted"
        for line in file.read_text().splitlines() if file.exists() else ():
            path = Path(line)
            if (
                line not in self._adopted
                and path.is_dir()
                and not path.is_symlink()
                and path.stat().st_uid == os.geteuid()
            ):
                shutil.rmtree(path)
        file.write_text("".join(f"{line}\n" for line in sorted(self._adopted)))

    def close(self) -> None:
        """Give the directory free; idempotent."""
        self.cgroups.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
