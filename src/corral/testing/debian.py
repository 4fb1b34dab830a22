"""Things of Debian for tests, by name and through apt, which checks them: packages as layers of an image, and sources.

What was fetched is kept in a directory of the user's, so that a machine fetches it once.
"""

import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from corral.testing.images import BuiltImage, build, directory, symlink, tar_of, this_platform

TOOLS: Final = ("busybox-static", "libc6", "libc6-dev", "linux-libc-dev", "make", "tcc")
_APPLETS: Final = (
    *("[", "awk", "basename", "cat", "chmod", "cmp", "cp", "cut", "date", "dirname", "echo", "env", "expr", "false"),
    *("grep", "head", "hostname", "id", "ln", "ls", "mkdir", "mv", "printf", "rm", "sed", "sh", "sleep", "sort"),
    *("tail", "test", "touch", "tr", "true", "uname", "wc"),
)
_SOURCE_SCRIPT: Final = Path(__file__).parents[3] / "examples" / "demo" / "fetch_debian_source.sh"
_WITHIN_S: Final = 120.0


class DebianAbsent(Exception):
    """It cannot be had here; the message says why."""


@functools.cache
def packages(*names: str) -> tuple[Path, ...]:
    """The current binary packages of these names, in this order. Raises DebianAbsent."""
    place = _place("packages")
    if not all(_found(place, name) for name in names):
        _run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *names], cwd=place)
    return tuple(_found(place, name)[0] for name in names)


@functools.cache
def source(name: str) -> Path:
    """The unpacked upstream source of a package: a directory. Raises DebianAbsent."""
    place = _place(f"source-{name}")
    tree = place / name
    if not tree.exists():
        with tempfile.TemporaryDirectory(dir=place) as folder:
            _run(["sh", str(_SOURCE_SCRIPT), name, folder], cwd=place)
            (archive,) = Path(folder).glob("*.orig.tar.*")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            (unpacked,) = (each for each in Path(folder).iterdir() if each.is_dir())
            unpacked.rename(tree)
    return tree


def tools_image() -> BuiltImage:
    """A compiler, make and a shell: every layer is a package of Debian's, as it is. Raises DebianAbsent."""
    frame = tar_of(
        *(directory(name) for name in ("bin", "usr")), *(symlink(f"bin/{name}", "busybox") for name in _APPLETS)
    )
    layers = [_run(["dpkg-deb", "--fsys-tarfile", str(package)], cwd=Path("/")) for package in packages(*TOOLS)]
    settings = {"Env": ["PATH=/usr/bin:/bin", "CC=tcc", "AR=tcc -ar", "RANLIB=true"]}
    return build(frame, *layers, architecture=this_platform().architecture, settings=settings)


def _place(name: str) -> Path:
    if shutil.which("apt-get") is None:
        raise DebianAbsent("this machine has no apt-get")
    place = Path(tempfile.gettempdir(), f"corral-test-debian-{os.geteuid()}", name)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _found(place: Path, name: str) -> list[Path]:
    return sorted(place.glob(f"{name}_*.deb"))[-1:]


def _run(command: list[str], *, cwd: Path) -> bytes:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, check=False, timeout=_WITHIN_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DebianAbsent(f"`{command[0]}` does not do it: {error}") from error
    if done.returncode:
        raise DebianAbsent(f"`{' '.join(command)}` failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout
