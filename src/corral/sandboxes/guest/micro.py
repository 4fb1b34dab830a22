"""The small kernel: built from Debian's kernel source with ``micro.config``, everything in it that a machine needs.

It boots in a third of the time and has no modules, no PCI and no ACPI; it runs one processor. The build takes minutes
and a compiler, so nobody is made to do it.
"""

import os
import re
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from corral.kernel.errors import InvalidSpec, StoreUnavailable
from corral.sandboxes.guest.build import Tell, build_from_kernel, deb_members, debian_file
from corral.sandboxes.guest.kit import GuestKit
from corral.sandboxes.guest.workspace import Workspace

SOURCE: Final = "linux-source"
TOOLS: Final = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "strip": "binutils",
}
_CONFIG: Final = Path(__file__).with_name("micro.config")
_LIBELF: Final = ("/usr/include/libelf.h", "/usr/include/gelf.h")
_BUILD_WITHIN_S: Final = 4 * 3600.0
_SPACE_BYTES: Final = 3 * 1024**3
_TAIL_LINES: Final = 3
_REPRODUCIBLE: Final = {"KBUILD_BUILD_TIMESTAMP": "@0", "KBUILD_BUILD_USER": "corral", "KBUILD_BUILD_HOST": "corral"}
_OPTION: Final = re.compile(r"^(CONFIG_\w+)=", re.MULTILINE)


def missing_tools() -> tuple[str, ...]:
    """Debian packages that the build needs and this machine has not."""
    absent = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if not any(Path(header).exists() for header in _LIBELF):
        absent.add("libelf-dev")
    return tuple(sorted(absent))


def build_micro(workspace: Workspace, directory: Path, *, package: Path | None, tell: Tell) -> GuestKit:
    """Build it in ``workspace`` and keep the kit in ``directory``. Blocking, for minutes.

    ``package`` is a ``linux-source-*`` package of Debian; without one apt gets the current one.
    Raises: InvalidSpec for missing tools, space, or a source that this configuration does not fit; StoreUnavailable.
    """
    work = workspace.folder
    if absent := missing_tools():
        raise InvalidSpec(
            f"the small kernel cannot be built here: {', '.join(absent)} missing",
            cure=f"apt-get install {' '.join(absent)}",
        )
    if shutil.disk_usage(work).free < _SPACE_BYTES:
        raise InvalidSpec(f"the small kernel cannot be built here: {work} has less than 3 GiB free")
    package = package or debian_file(SOURCE, work, prefix="linux-source-", tell=tell)
    tree = _unpacked(package, work, tell)
    tell("configuring")
    _make(workspace, tree, f"KCONFIG_ALLCONFIG={_CONFIG}", "allnoconfig")
    _check_options(tree)
    jobs = os.cpu_count() or 1
    tell(f"compiling with {jobs} jobs; this takes minutes")
    _make(workspace, tree, f"-j{jobs}", *(f"{name}={value}" for name, value in _REPRODUCIBLE.items()), "vmlinux")
    kernel = work / "vmlinux"
    subprocess.run(["strip", "-o", kernel, tree / "vmlinux"], check=True, timeout=60)
    source = f"{package.name.removesuffix('.deb')}, micro"
    return build_from_kernel(kernel, directory, source=source, acpi=False, processors=False, tell=tell)


def _unpacked(package: Path, work: Path, tell: Tell) -> Path:
    tell(f"unpacking {package.name}")
    for path, content in deb_members(package):
        if path.startswith("usr/src/linux-source-") and ".tar" in path:
            archive = work / path.rpartition("/")[2]
            archive.write_bytes(content())
            with tarfile.open(archive) as tar:
                tar.extractall(work, filter="data")
            archive.unlink()
            return next(folder for folder in work.iterdir() if (folder / "Kconfig").exists())
    raise InvalidSpec(f"{package} holds no usr/src/linux-source-….tar")


def _check_options(tree: Path) -> None:
    """Every answer was taken; a kernel that knows other questions would be small in the wrong places."""
    made = (tree / ".config").read_text()
    lost = [option for option in _OPTION.findall(_CONFIG.read_text()) if f"\n{option}=" not in made]
    if lost:
        raise InvalidSpec(
            f"this kernel source does not take {', '.join(lost)}", cure="use Debian 12's linux-source-6.1"
        )


def _make(workspace: Workspace, tree: Path, *words: str) -> None:
    log = workspace.folder / "build.log"
    with log.open("ab") as output:
        make = subprocess.Popen(
            ["make", *words],
            cwd=tree,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(workspace.lock,),
            process_group=0,
        )
        try:
            status = make.wait(timeout=_BUILD_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            raise StoreUnavailable(f"the kernel was not built within {_BUILD_WITHIN_S:g} s") from error
        finally:
            if make.returncode is None:
                os.killpg(make.pid, signal.SIGKILL)  # make alone would leave its compilers behind
                make.wait()
    if status:
        last = " ".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise InvalidSpec(f"the kernel cannot be built: {last[:500]}")
