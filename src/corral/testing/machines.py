"""Virtual machines in tests: a guest kit made once, a root that holds what the suites need, and why there is none.

``CORRAL_TEST_KITS`` names a directory of guest kits to use instead of building one of Debian's kernel.
"""

import asyncio
import functools
import os
import platform
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from corral.kernel.errors import CorralError
from corral.sandboxes.guest import sample_root
from corral.sandboxes.guest.build import build_from_package, download_package
from corral.sandboxes.guest.kit import open_kit
from corral.sandboxes.guest.root_image import RootImages
from corral.sandboxes.model import SandboxSpec
from corral.sandboxes.ports import Box, Runtime

KITS_VARIABLE: Final = "CORRAL_TEST_KITS"
PROGRAMS: Final = (
    *("sh", "cat", "ls", "head", "tail", "sleep", "mkfifo", "setsid", "env", "cut", "tr", "grep", "unshare", "yes"),
    *("touch", "mkdir", "chmod", "rm", "cp", "test", "id", "true", "echo", "hostname", "date", "seq", "wc", "od"),
)
_NEEDED: Final = ("qemu-system-x86_64", "mksquashfs")


@functools.cache
def why_no_machines() -> str:
    """Why no virtual machine can be started here, found by looking for what one needs; "" when it can."""
    if platform.machine() != "x86_64":
        return f"this machine is a {platform.machine()}; the test's guest kernel is for x86_64"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing (Debian: qemu-system-x86, squashfs-tools)"
    try:
        kits()
    except (CorralError, OSError) as error:
        return f"no guest kit: {error}"
    return ""


@functools.cache
def kits() -> Path:
    """A directory with a guest kit. Raises CorralError with the reason when none can be made."""
    named = os.environ.get(KITS_VARIABLE)
    if named:
        open_kit(Path(named))
        return Path(named)
    directory = Path(tempfile.gettempdir(), f"corral-test-kits-{os.geteuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        open_kit(directory)
    except CorralError:
        with tempfile.TemporaryDirectory() as folder:
            build_from_package(download_package(Path(folder), tell=_quiet), directory, tell=_quiet)
    return directory


def build_root(directory: Path) -> Path:
    """What the contract and the escape suite run, in ``directory``/root."""
    root = directory / "root"
    root.mkdir()
    return sample_root.build(root, PROGRAMS)


def root_in_image(folder: Path) -> Path:
    """The same root in ``folder``/image, as the store of images keeps one: an empty directory beside its disk."""
    image = folder / "image"
    image.mkdir()
    root = build_root(image)
    made = asyncio.run(RootImages(folder / "disks").image(str(root)))
    shutil.rmtree(root)
    root.mkdir()
    shutil.copyfile(made, image / "root.squashfs")
    (image / "image.json").write_text("{}")
    return image


class WithRoot:
    """A runtime that starts sandboxes without a root on this one: machines boot from images only."""

    def __init__(self, inner: Runtime, root: Path) -> None:
        self.inner = inner
        self.name = inner.name
        self.capabilities = inner.capabilities
        self._root = str(root)

    async def start(self, spec: SandboxSpec) -> Box:
        """See ``ports.Runtime``."""
        return await self.inner.start(spec if spec.root else replace(spec, root=self._root))

    async def sweep(self) -> int:
        """See ``ports.Runtime``."""
        return await self.inner.sweep()


def _quiet(_: str) -> None:
    pass
