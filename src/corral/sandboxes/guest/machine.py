"""A QEMU machine as values, and the command line that makes it. Nothing here does I/O.

The machine is of type microvm: virtio over MMIO, one disk, one port to the agent, one console, no network device.
What it is made of reaches QEMU as open descriptors, because QEMU runs as a user who can open nothing by name.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

MIB: Final = 1024 * 1024
STREAM_PORT: Final = "corral.agent"  # native/guest/guest.h
# of a machine's memory: the kernel and what it keeps about the rest; one with modules and ACPI is a distribution's
_KERNEL_BYTES: Final = 64 * MIB
_DISTRIBUTION_BYTES: Final = 160 * MIB
_CODE_MIB: Final = 64  # translated code that QEMU keeps without KVM
_PROCESSORS_MAX: Final = 32
_QUIET: Final = "quiet console=hvc0"
_LOUD: Final = "console=ttyS0 ignore_loglevel"
# what a guest of ours does not need, and boots faster without
_ALWAYS: Final = (
    "panic=-1 reboot=t random.trust_cpu=on cryptomgr.notests apparmor=0 audit=0 ipv6.disable=1 nowatchdog "
    "init_on_alloc=0 nokaslr"
)
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class MachineShape(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the state of a booted machine depends on; its digest is a template's key.

    Attributes:
        qemu: the program and its version.
        kit: digest of the guest kit.
        root: identity of the root image.
        memory_bytes: what the sandbox may use; the machine has more, for its kernel.
        processors: virtual ones.
        counter_khz: the host's time stamp counter, which a guest without KVM is told.
        acpi: see ``KitManifest``.
        loud: the kernel tells everything on a serial console.
    """

    qemu: str
    accelerator: Accelerator
    kit: str
    root: str
    memory_bytes: int
    processors: int
    counter_khz: int
    acpi: bool
    loud: bool = False

    @property
    def key(self) -> str:
        """Names it."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @property
    def machine_bytes(self) -> int:
        """The machine's memory, in whole MiB; a kernel needs a part of it for every page that there is."""
        kernel_bytes = _DISTRIBUTION_BYTES if self.acpi else _KERNEL_BYTES
        return math.ceil((self.memory_bytes * 1.03 + kernel_bytes) / MIB) * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Numbers of descriptors in the QEMU process.

    Attributes:
        monitor: a connected socket for QMP, or -1.
        memory: the machine's memory as a file, or -1 for memory of its own.
    """

    stream: int
    kernel: int
    initrd: int
    root: int
    console: int
    monitor: int = -1
    memory: int = -1


class Stage(StrEnum):
    """What the process is for: a boot that becomes the sandbox itself, a template, or a clone of one."""

    BOOT = "boot"
    TEMPLATE = "template"
    CLONE = "clone"


def processors_for(cpus: float, accelerator: Accelerator, *, many: bool) -> int:
    """How many virtual processors give ``cpus``; one without KVM, where a second costs more than it gives."""
    if accelerator is Accelerator.TCG or not many:
        return 1
    return max(1, min(_PROCESSORS_MAX, math.ceil(cpus)))


def kernel_words(shape: MachineShape) -> str:
    """The kernel's command line."""
    words = [_ALWAYS, _LOUD if shape.loud else _QUIET]
    if not shape.loud:
        words.append("8250.nr_uarts=0")
    if shape.accelerator is Accelerator.TCG:
        # the emulator speculates nothing; and no clock in here could judge the host's counter
        words.append(f"mitigations=off tsc_early_khz={shape.counter_khz} tsc=reliable lpj=4000000 no_timer_check")
    return " ".join(words)


def arguments(program: str, shape: MachineShape, stage: Stage, at: Descriptors) -> list[str]:
    """QEMU's command line. Template and clone differ only in whose the memory is, as its state demands."""
    machine = [
        "microvm",
        f"acpi={_switch(shape.acpi)}",
        f"isa-serial={_switch(shape.loud)}",
        "pit=on,pic=on,rtc=on",
        *(["memory-backend=ram"] if at.memory >= 0 else []),
    ]
    return [
        *(program, "-M", ",".join(machine), "-accel", _accelerator(shape.accelerator)),
        *("-cpu", "host" if shape.accelerator is Accelerator.KVM else "EPYC-Rome,check=off"),
        *("-smp", str(shape.processors), "-m", f"{shape.machine_bytes // MIB}M", *_memory(shape, stage, at)),
        *("-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-sandbox", _SANDBOX, "-bios", "qboot.rom"),
        *("-kernel", _path(at.kernel), "-initrd", _path(at.initrd), "-append", kernel_words(shape)),
        *_disk(at.root),
        *_channels(shape, at),
        *(["-incoming", "defer"] if stage is Stage.CLONE else []),
    ]


def _memory(shape: MachineShape, stage: Stage, at: Descriptors) -> Sequence[str]:
    if at.memory < 0:
        return ()
    share = _switch(stage is Stage.TEMPLATE)
    size = f"{shape.machine_bytes // MIB}M"
    return ("-object", f"memory-backend-file,id=ram,size={size},mem-path={_path(at.memory)},share={share}")


def _disk(descriptor: int) -> Sequence[str]:
    node = f"driver=raw,node-name=root,read-only=on,file.driver=file,file.filename={_path(descriptor)},file.locking=off"
    return ("-blockdev", node, "-device", "virtio-blk-device,drive=root")


def _channels(shape: MachineShape, at: Descriptors) -> Sequence[str]:
    """A port's number is its place: 0 is the console's."""
    monitor = ("-chardev", f"socket,id=monitor,fd={at.monitor}", "-mon", "chardev=monitor,mode=control")
    console = ("-serial", "chardev:console") if shape.loud else ("-device", "virtconsole,chardev=console,nr=0")
    return (
        *("-device", "virtio-serial-device,max_ports=4"),
        *("-chardev", f"socket,id=console,fd={at.console}", *console),
        *("-chardev", f"socket,id=stream,fd={at.stream}"),
        *("-device", f"virtserialport,chardev=stream,name={STREAM_PORT},nr=1"),
        *(monitor if at.monitor >= 0 else ()),
    )


def _accelerator(accelerator: Accelerator) -> str:
    return "kvm" if accelerator is Accelerator.KVM else f"tcg,tb-size={_CODE_MIB}"


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _switch(on: bool) -> str:
    return "on" if on else "off"
