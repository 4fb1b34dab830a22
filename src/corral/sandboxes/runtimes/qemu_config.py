"""What an operator says about the ``qemu`` runtime; checked when the configuration is read."""

import msgspec

from corral.sandboxes.guest.machine import Accelerator
from corral.sandboxes.runtimes.programs import Policy


class QemuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``qemu`` runtime.

    Attributes:
        program: name or path of qemu-system-x86_64; "" takes the one that is installed.
        accelerator: "kvm", "tcg" (emulation), or "" for KVM where a machine really boots with it, else emulation.
        kvm_within_s: a trial boot with KVM that takes longer has failed.
        boot_within_s: longest boot of a machine or of a template.
        templates: sandboxes go on from frozen machines.
        templates_max: as many are kept; each holds the memory that a boot has written.
        loud: the guest's kernel tells everything on its console, slowly.
        vulnerable: what to do when QEMU's version has known vulnerabilities: "warn" or "refuse".
    """

    program: str = ""
    accelerator: str = ""
    kvm_within_s: float = 5.0
    boot_within_s: float = 60.0
    templates: bool = True
    templates_max: int = 4
    loud: bool = False
    vulnerable: Policy = Policy.WARN

    def __post_init__(self) -> None:
        if self.accelerator not in ("", *Accelerator):
            raise ValueError(f"accelerator must be one of {', '.join(Accelerator)}, or empty")
        if not (self.kvm_within_s > 0 and self.boot_within_s > 0):
            raise ValueError("kvm_within_s and boot_within_s must be above 0 seconds")
        if self.templates_max < 1:
            raise ValueError("templates_max must be at least 1")
