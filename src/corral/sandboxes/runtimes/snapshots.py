"""Frozen boxes on a worker's disk: one directory each, named by the digest of everything in it.

Layout, below the directory of the runtime: ``<64 hex>/`` with ``note.json`` and the files; a name with a leading dot is
half made. None outlives its worker: whoever knew their names is gone with it. A snapshot holds the memory of a tenant:
nobody but root may read the directory, and nobody but its tenant gets it back (``Note.tenant``).
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from corral.kernel.digest import Digest, Digester
from corral.kernel.errors import NotFound, SandboxFailed
from corral.sandboxes.model import SandboxSpec, Size

NOTE: Final = "note.json"
_PIECE_BYTES: Final = 4 * 1024**2
_READABLE: Final = 0o004


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a snapshot is of.

    Attributes:
        made_by: runtime, program, version and all else that must be the same to thaw it.
        tenant: whose memory it is; "" for a machine that has not met a tenant yet.
        root: ``SandboxSpec.root`` of the frozen box.
        size: its limits.
        id: of the frozen box, for people.
        files: digest of each file, by name.
    """

    made_by: str
    tenant: str
    root: str
    size: Size
    id: str
    files: dict[str, str] = {}

    def mistake(self, spec: SandboxSpec) -> str:
        """Why it may not become ``spec``, in one sentence; "" when it may."""
        if self.tenant not in ("", spec.tenant):
            return "it belongs to another tenant"
        if (self.root, self.size) != (spec.root, spec.size):
            return "it has another root or another size"
        return ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One that is there. ``files`` by name."""

    digest: Digest
    note: Note
    files: Mapping[str, Path]


class Snapshots:
    """The snapshots of one runtime of one worker. Everything here blocks: call it in a thread.

    ``bytes_max`` bounds them all; the one that was used longest ago goes first.
    """

    def __init__(self, directory: Path, *, bytes_max: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(mode=0o700, parents=True)

    def keep(self, note: Note, files: Mapping[str, Path]) -> Digest:
        """Take ``files`` over (they are moved) and name them.

        Whoever wrote them must have ended: what they hold afterwards is what was digested.

        Raises SandboxFailed: one of them is no ordinary file, or there is no space.
        """
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._directory))
        try:
            digests = {name: str(_taken_over(source, fresh / name)) for name, source in sorted(files.items())}
            note = msgspec.structs.replace(note, files=digests)
            content = msgspec.json.encode(note, order="deterministic")
            digest = Digest.of(content)
            (fresh / NOTE).write_bytes(content)
            place = self._directory / digest.hash
            if not place.exists():
                fresh.rename(place)
        except OSError as error:
            raise SandboxFailed(f"the snapshot cannot be kept: {error}", cure="free some disk space") from error
        finally:
            if fresh.exists():
                shutil.rmtree(fresh)
        self._evict(spare=digest.hash)
        return digest

    def find(self, digest: Digest) -> Snapshot:
        """The snapshot of this name; it counts as used now. Raises NotFound."""
        place = self._directory / digest.hash
        try:
            content = (place / NOTE).read_bytes()
            if Digest.of(content) != digest:
                raise NotFound(f"there is no snapshot {digest} on this worker")
            os.utime(place)
        except OSError as error:
            raise NotFound(f"there is no snapshot {digest} on this worker") from error
        note = msgspec.json.decode(content, type=Note)
        return Snapshot(digest, note, {name: place / name for name in note.files})

    def drop(self, digest: Digest) -> None:
        """Forget it; nothing when it is gone. Boxes that came from it are not touched."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._directory / digest.hash)

    def close(self) -> None:
        """Remove all of them; idempotent."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._directory)

    def _evict(self, *, spare: str) -> None:
        kept = sorted((place.stat().st_mtime, _size_of(place), place) for place in self._directory.iterdir())
        total = sum(size for _, size, _ in kept)
        for _, size, place in kept:
            if total <= self._bytes_max:
                return
            if place.name != spare:
                shutil.rmtree(place)
                total -= size


def put(source: Path, place: Path) -> None:
    """A file where a box will read it: everybody may read it, nobody may write it. Raises OSError.

    What everybody may read already is linked, and costs nothing; anything else is copied.
    """
    if source.stat().st_mode & _READABLE:
        with suppress(OSError):  # another file system, or one without links
            os.link(source.resolve(), place)
            return
    shutil.copyfile(source, place)
    place.chmod(0o444)


def _size_of(place: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in place.iterdir())


def _taken_over(source: Path, place: Path) -> Digest:
    """Move a file of a jail out of it. What a jail holds is its inmate's: a link leads nowhere from here."""
    try:
        os.rename(source, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with _ordinary(source, source.name) as file, place.open("xb") as copy:
            shutil.copyfileobj(file, copy, _PIECE_BYTES)
        source.unlink()
    with _ordinary(place, source.name) as file:
        descriptor = file.fileno()
        os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fchmod(descriptor, 0o444)
        digester = Digester()
        while piece := file.read(_PIECE_BYTES):
            digester.update(piece)
    return digester.digest()


@contextmanager
def _ordinary(path: Path, name: str) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise SandboxFailed(f"{name} of the snapshot is no ordinary file")
        yield file
