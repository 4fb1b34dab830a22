"""Root images: a prepared root directory as one read-only squashfs file, which machines boot from.

The directory is Corral's own (``images`` flattened it, nothing of an archive is left in it), so what reads it needs to
trust nobody. Its own /proc, /dev, /sys, /tmp, /work and /run stay out; empty mount points take their place.
Owners are root's, attributes stay out: the same directory gives the same bytes.

The image of a prepared OCI image lies beside its root (``…/sha256-<hex>/root.squashfs``) and goes with it; others lie
in a folder of the worker's. Whoever needs one first makes it, everybody else waits, also in other processes.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from corral.kernel.concurrency import finish
from corral.kernel.errors import InvalidSpec, SandboxFailed

PROGRAM: Final = "mksquashfs"
CURE: Final = "apt-get install squashfs-tools"
FILE: Final = "root.squashfs"
_RECORD: Final = "image.json"  # what the store of images keeps beside a root
_OURS: Final = ("proc", "dev", "sys", "tmp", "work", "run")
_MOUNT_POINTS: Final = (("proc", "555"), ("dev", "755"), ("tmp", "1777"), ("work", "1777"))
_TRY_S: Final = 0.05
_END_WITHIN_S: Final = 10.0
_WORDS: Final = 400
_MEMORY: Final = "256M"


class RootImages:
    """The root images of one worker. ``folder`` holds those of directories that are no prepared images."""

    def __init__(self, folder: Path, *, within_s: float = 300.0) -> None:
        self._folder = folder
        self._within_s = within_s

    def place(self, root: str) -> Path:
        """Where the image of ``root`` lies, or will. Raises InvalidSpec when it is no directory."""
        directory = Path(root)
        if not directory.is_absolute() or not directory.is_dir():
            raise InvalidSpec(f'root: "{root}" is not an absolute path of a directory on this worker', field="root")
        if (directory.parent / _RECORD).exists():
            return directory.parent / FILE
        status = directory.stat()
        name = f"{directory}\0{status.st_dev}\0{status.st_ino}\0{status.st_mtime_ns}"
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.squashfs"

    async def image(self, root: str, *, on_start: Callable[[], None] = lambda: None) -> Path:
        """The image of the prepared root directory ``root``, made now when there is none.

        ``on_start`` is called when this call makes it.

        Raises: InvalidSpec when it is no directory, or empty; SandboxFailed when it cannot be made, with the reason.
        Cancellation: a half-made image is removed.
        """
        place = self.place(root)
        if place.exists():
            return place
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SandboxFailed(f"the root image of {root} cannot be made: {error.strerror}") from error
        try:
            while not _locked(lock):  # noqa: ASYNC110 - the lock is another process's to give
                await asyncio.sleep(_TRY_S)
            if not place.exists():
                on_start()
                await self._made(Path(root), place)
        finally:
            os.close(lock)
        return place

    async def _made(self, root: Path, place: Path) -> None:
        if not {*os.listdir(root)} - {*_OURS}:
            raise InvalidSpec(
                f'root: the directory "{root}" is empty; a root holds at least /usr or /bin', field="root"
            )
        for leftover in place.parent.glob(f".{place.name}.*"):  # of a maker that was killed: the lock is ours
            leftover.unlink(missing_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        try:
            await self._run(_arguments(root, fresh))
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
            os.replace(fresh, place)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(fresh)
            raise
        finally:
            os.close(descriptor)

    async def _run(self, arguments: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env={},
        )
        try:
            async with asyncio.timeout(self._within_s):
                said, _ = await process.communicate()
        except TimeoutError:
            raise SandboxFailed(f"the root image was not made within {self._within_s:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await finish(_reaped(process), within_s=_END_WITHIN_S)
        if process.returncode:
            words = said.decode(errors="replace").strip()[-_WORDS:]
            raise SandboxFailed(f"the root image cannot be made: {words or f'status {process.returncode}'}")


def _arguments(root: Path, image: str) -> list[str]:
    program = shutil.which(PROGRAM, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise SandboxFailed(f"{PROGRAM} is not installed", cure=CURE)
    points = [word for name, mode in _MOUNT_POINTS for word in ("-p", f"{name} d {mode} 0 0")]
    return [
        *(program, str(root), image, "-noappend", "-comp", "lz4", "-all-root", "-no-xattrs", "-mkfs-time", "0"),
        *("-root-mode", "755", "-no-progress", "-quiet", "-mem", _MEMORY, *points, "-e", *_OURS),
    ]


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _reaped(process: asyncio.subprocess.Process) -> None:
    await process.wait()
