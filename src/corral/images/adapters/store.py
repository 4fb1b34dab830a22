"""Prepared images on this machine's disk, safe for several processes.

Layout, below one directory: ``sha256-<hex>/`` holds a prepared image: ``root/`` (read-only for sandboxes),
``image.json`` (the record), ``used`` (its time is the last use) and, once a virtual machine has booted from it,
``root.squashfs`` (made by ``sandboxes.guest.root_image``); ``tmp/<hex>.<n>/`` is half-done work;
``locks/<hex>`` is held exclusively by whoever prepares or removes the image, and shared by whoever uses it. The kernel
frees a lock with its holder, so a lock and not a note says whether half-done work has an owner.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from corral.images.model import ImageRecord, PreparedImage
from corral.kernel.clock import Clock
from corral.kernel.errors import InvalidSpec

_log = structlog.get_logger(__name__)
_PREFIX: Final = "sha256-"


class Lock:
    """One process's hold on one image; ``close`` gives it free."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def share_nowait(self) -> bool:
        """Become one of many users; False when somebody holds it alone."""
        return _try(self.descriptor, fcntl.LOCK_SH)

    def own_nowait(self) -> bool:
        """Become the only one; False when somebody else uses it."""
        return _try(self.descriptor, fcntl.LOCK_EX)

    def close(self) -> None:
        """Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class ImageFolder:
    """The directory of prepared images. Blocking; every call is short but ``remove`` and ``sweep``."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        """Raises InvalidSpec when the directory cannot be made."""
        self.directory = directory
        self._clock = clock
        try:
            for folder in (directory, self._locks, self._tmp):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSpec(f"images.directory: {directory} cannot be used: {error.strerror}") from error

    @property
    def _locks(self) -> Path:
        return self.directory / "locks"

    @property
    def _tmp(self) -> Path:
        return self.directory / "tmp"

    def place(self, digest: str) -> Path:
        """Where an image lies, or will."""
        return self.directory / f"{_PREFIX}{digest.removeprefix('sha256:')}"

    def lock(self, digest: str) -> Lock:
        """A lock of this image that is not held yet."""
        path = self._locks / digest.removeprefix("sha256:")
        return Lock(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def find(self, digest: str) -> PreparedImage | None:
        """A prepared image; None when there is none."""
        place = self.place(digest)
        try:
            record = msgspec.json.decode((place / "image.json").read_bytes(), type=ImageRecord)
            used_s = (place / "used").stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.DecodeError:
            _log.warning("an image's record cannot be read", image=digest)
            return None
        return PreparedImage(
            record=record, root=str(place / "root"), used_s=used_s, disk_bytes=_size(place / "root.squashfs")
        )

    def list(self) -> list[PreparedImage]:
        """All of them, by digest."""
        return [image for digest in self.digests() if (image := self.find(digest)) is not None]

    def digests(self) -> tuple[str, ...]:
        """Of all of them; one look at one directory."""
        names = sorted(name for name in os.listdir(self.directory) if name.startswith(_PREFIX))
        return tuple(f"sha256:{name.removeprefix(_PREFIX)}" for name in names)

    def touch(self, digest: str) -> None:
        """It is used now."""
        now_s = self._clock.now_s()
        with suppress(FileNotFoundError):
            os.utime(self.place(digest) / "used", (now_s, now_s))

    def begin(self, digest: str) -> Path:
        """A fresh folder for a preparation; the caller owns the image's lock."""
        return Path(tempfile.mkdtemp(prefix=f"{digest.removeprefix('sha256:')}.", dir=self._tmp))

    def publish(self, folder: Path, record: ImageRecord) -> PreparedImage:
        """Make what ``begin`` gave visible: complete from the first moment. The caller owns the image's lock."""
        (folder / "image.json").write_bytes(msgspec.json.encode(record))
        (folder / "used").touch()
        self._flush(folder)
        place = self.place(record.digest)
        if place.exists():  # without a readable record, or it would have been found
            self.discard(place)
        folder.rename(place)
        self._flush(self.directory)
        self.touch(record.digest)
        image = self.find(record.digest)
        assert image is not None  # we own the lock
        return image

    def write_record(self, record: ImageRecord) -> None:
        """Replace an image's record, at once."""
        place = self.place(record.digest)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".image.", delete=False) as file:
            file.write(msgspec.json.encode(record))
        os.replace(file.name, place / "image.json")

    def remove(self, digest: str) -> None:
        """Remove an image; the caller owns its lock. It is gone for everybody before its files go."""
        gone = self.begin(digest)
        with suppress(FileNotFoundError):
            self.place(digest).rename(gone / "image")
        self.discard(gone)

    def discard(self, folder: Path) -> None:
        """Remove a folder with everything in it."""
        shutil.rmtree(folder)

    def sweep(self) -> int:
        """Remove half-done work that has no owner; how many pieces."""
        swept = 0
        for name in os.listdir(self._tmp):
            lock = self.lock(name.partition(".")[0])
            try:
                if lock.own_nowait() and (self._tmp / name).exists():
                    self.discard(self._tmp / name)
                    swept += 1
            finally:
                lock.close()
        return swept

    def _flush(self, folder: Path) -> None:
        """To the disk before it counts; what the unpacking process wrote, the file system orders before."""
        for path in (folder / "image.json", folder) if stat.S_ISDIR(folder.stat().st_mode) else (folder,):
            if not path.exists():
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
