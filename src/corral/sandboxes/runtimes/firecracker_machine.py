"""One Firecracker machine as values: what it is made of, and what its monitor is told. Nothing here does I/O."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corral.sandboxes.guest.kit import GuestKit
from corral.sandboxes.model import MIB, Size
from corral.sandboxes.runtimes.box import Overhead
from corral.sandboxes.runtimes.firecracker_api import BootSource, Drive, MachineConfig, Vsock
from corral.sandboxes.runtimes.firecracker_jail import HOST_PORT, VSOCK

KERNEL: Final = "kernel"
INITRD: Final = "initrd"
ROOT: Final = "root.squashfs"
STATE: Final = "state"
MEMORY: Final = "memory"
BOOT_ARGS: Final = (
    "console=ttyS0 quiet loglevel=1 reboot=k panic=-1 pci=off random.trust_cpu=on cryptomgr.notests apparmor=0 audit=0 "
    "ipv6.disable=1 nowatchdog"
)
GUEST_CID: Final = 3  # alone on its bus
_KERNEL_MIB: Final = 64  # of a machine's memory: the kernel, its initramfs, and what it keeps about the rest
_MONITOR_MIB: Final = 32
_THREADS: Final = 8  # the monitor's own, beside one for each processor
_PROCESSORS_MAX: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Attributes:
    program: Firecracker and its version.
    kit: what it boots.
    root: the image that it mounts read-only.
    root_identity: changes with the content of ``root``.
    size: of the sandbox; the machine has more memory, for its kernel.
    boot_args: the operator's part of the kernel's command line.
    """

    program: str
    kit: GuestKit
    root: Path
    root_identity: str
    size: Size
    boot_args: str

    @property
    def made_by(self) -> str:
        """Everything that a snapshot depends on, as one line: with the same line it may be thawed."""
        return f"firecracker {self.program} kit={self.kit.digest} root={self.root_identity} args={self.boot_args!r}"

    @property
    def files(self) -> dict[str, Path]:
        """What its jail holds before it boots."""
        return {KERNEL: self.kit.kernel, INITRD: self.kit.initrd, ROOT: self.root}

    @property
    def memory_mib(self) -> int:
        """Of the machine."""
        return math.ceil(self.size.memory_bytes / MIB) + _KERNEL_MIB

    @property
    def config(self) -> MachineConfig:
        processors = min(_PROCESSORS_MAX, max(1, math.ceil(self.size.cpus))) if self.kit.manifest.processors else 1
        return MachineConfig(vcpu_count=processors, mem_size_mib=self.memory_mib)

    @property
    def boot_source(self) -> BootSource:
        words = [self.boot_args, *([] if self.kit.manifest.acpi else ["acpi=off"])]
        words += [f"corral.link=vsock:{HOST_PORT}", "corral.root=/dev/vda", "corral.fs=squashfs"]
        return BootSource(kernel_image_path=f"/{KERNEL}", initrd_path=f"/{INITRD}", boot_args=" ".join(words))

    @property
    def drive(self) -> Drive:
        # not the "root device": that would add words to the command line that the initramfs does not want
        return Drive(drive_id="root", path_on_host=f"/{ROOT}", is_root_device=False, is_read_only=True)

    @property
    def vsock(self) -> Vsock:
        return Vsock(guest_cid=GUEST_CID, uds_path=f"/{VSOCK}")

    @property
    def overhead(self) -> Overhead:
        """What monitor and guest kernel use beyond the sandbox's size."""
        return Overhead(memory_bytes=(_KERNEL_MIB + _MONITOR_MIB) * MIB, processes=_THREADS + self.config.vcpu_count)

    @property
    def file_bytes_max(self) -> int:
        """Of any file that the monitor writes: the largest is the machine's memory."""
        return (self.memory_mib + 16) * MIB


def root_identity(root: Path) -> str:
    """Changes whenever the file does. Blocking, short. Raises OSError."""
    status = root.stat()
    return f"{status.st_dev:x}:{status.st_ino:x}:{status.st_size:x}:{status.st_mtime_ns:x}"
