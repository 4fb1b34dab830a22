"""The guest kit: the kernel that virtual machines boot, kept by digest in the data directory.

Layout, below one directory (``guest`` in the data directory): ``<16 hex>/`` is one kit: ``manifest.json``, ``vmlinux``
(ELF) and ``modules.cpio``; ``current`` links to the one that is used; ``initrd-<16 hex>.cpio`` in a kit is made of its
modules, the guest program and the agent that this version of Corral brings, whenever one of them is new.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from corral.kernel.errors import SandboxFailed
from corral.kernel.native import native_program
from corral.sandboxes.guest.cpio import Entry, archive
from corral.sandboxes.link import agent_path

FORMAT: Final = 1
CURRENT: Final = "current"
KERNEL: Final = "vmlinux"
MODULES: Final = "modules.cpio"
MANIFEST: Final = "manifest.json"
CURE: Final = "corral vm build-kit"


class KitManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a kit is made of; the SHA-256 of its canonical JSON names the kit.

    Attributes:
        release: the kernel's own, ``uname -r``.
        source: where the kernel comes from, for people.
        kernel, modules: SHA-256 of the files.
        acpi: machines need ACPI to find their devices; without it the kernel takes them from its command line.
        processors: more than one may be given to it.
    """

    format: int = FORMAT
    release: str
    source: str
    kernel: str
    modules: str
    acpi: bool
    processors: bool

    @property
    def digest(self) -> str:
        """Names the kit."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class GuestKit:
    """A kernel and an initramfs that boots into our agent.

    Attributes:
        directory: where it lies.
        manifest: what it is made of.
        kernel: path of the ELF kernel.
        initrd: path of the initramfs.
        digest: SHA-256 over the manifest and the initramfs: what a machine's behaviour depends on.
    """

    def __init__(self, directory: Path, manifest: KitManifest, initrd: Path, digest: str) -> None:
        self.directory = directory
        self.manifest = manifest
        self.kernel = directory / KERNEL
        self.initrd = initrd
        self.digest = digest

    @property
    def about(self) -> str:
        """For people."""
        return f"guest kernel {self.manifest.release} ({self.manifest.source})"


def default_data_directory() -> Path:
    """Where Corral keeps its data when nobody says otherwise."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "corral"


def guest_path() -> Path:
    """Process 1 of a machine (native/guest); ``CORRAL_GUEST`` overrides it. Raises SandboxFailed when absent."""
    return native_program("guest", what="the guest program", variable="CORRAL_GUEST")


def open_kit(directory: Path) -> GuestKit:
    """The kit at ``directory``, or the current one below it; its initramfs is made when it is missing.

    Blocking, tens of milliseconds. Raises SandboxFailed when there is none, or when it cannot be used.
    """
    place = (directory if (directory / MANIFEST).exists() else directory / CURRENT).resolve()
    try:
        manifest = msgspec.json.decode((place / MANIFEST).read_bytes(), type=KitManifest)
    except (FileNotFoundError, NotADirectoryError):
        raise SandboxFailed(f"there is no guest kit in {directory}", cure=CURE) from None
    except (msgspec.DecodeError, OSError) as error:
        raise SandboxFailed(f"the guest kit in {place} cannot be read: {error}", cure=CURE) from error
    if manifest.format != FORMAT:
        raise SandboxFailed(f"the guest kit in {place} has format {manifest.format}, not {FORMAT}", cure=CURE)
    if not (place / KERNEL).is_file():
        raise SandboxFailed(f"the guest kit in {place} has lost its kernel", cure=CURE)
    content = _initrd(place)
    digest = hashlib.sha256(content).hexdigest()
    initrd = place / f"initrd-{digest[:16]}.cpio"
    if not initrd.exists():
        _replace(initrd, content)
        for old in place.glob("initrd-*.cpio"):
            if old != initrd:
                old.unlink(missing_ok=True)
    return GuestKit(place, manifest, initrd, hashlib.sha256((manifest.digest + digest).encode()).hexdigest())


def verify(kit: GuestKit) -> None:
    """Read everything and compare it with the manifest. Raises SandboxFailed naming the file that differs."""
    for name, wanted in ((KERNEL, kit.manifest.kernel), (MODULES, kit.manifest.modules)):
        if hashlib.sha256((kit.directory / name).read_bytes()).hexdigest() != wanted:
            raise SandboxFailed(f"{kit.directory / name} is not what the manifest of its kit names", cure=CURE)


def _initrd(place: Path) -> bytes:
    programs = archive(
        (
            Entry("dev"),
            Entry("init", guest_path().read_bytes(), executable=True),
            Entry("agent", agent_path().read_bytes(), executable=True),
        )
    )
    return (place / MODULES).read_bytes() + programs


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o644)
    os.replace(file.name, path)
