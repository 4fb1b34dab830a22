"""What an operator says about the ``firecracker`` runtime; checked when the configuration is read."""

import re
from typing import Final

import msgspec

from corral.sandboxes.model import GIB
from corral.sandboxes.runtimes.firecracker_machine import BOOT_ARGS
from corral.sandboxes.runtimes.programs import Policy

_OURS: Final = re.compile(r"(?:^|\s)(?:corral\.|init=|rdinit=|root=)")
_BOOT_ARGS_MAX: Final = 1500


class FirecrackerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``firecracker`` runtime.

    Attributes:
        firecracker, jailer: names or paths; "" takes the installed ones. Both of one version.
        vulnerable: what to do when that version has known vulnerabilities: "warn" or "refuse".
        boot_args: the guest kernel's command line, but for what Corral adds.
        templates: start as a copy of a machine that was frozen after its boot.
        snapshot_bytes_max: of all templates and snapshots on disk.
        probe_within_s: a guest's kernel that has not come to its end by then never will.
        boot_within_s: longest boot of a machine or of a template.
    """

    firecracker: str = ""
    jailer: str = ""
    vulnerable: Policy = Policy.WARN
    boot_args: str = BOOT_ARGS
    templates: bool = True
    snapshot_bytes_max: int = 16 * GIB
    probe_within_s: float = 5.0
    boot_within_s: float = 30.0

    def __post_init__(self) -> None:
        if len(self.boot_args) > _BOOT_ARGS_MAX or not self.boot_args.isprintable():
            raise ValueError(f"boot_args must be one line of at most {_BOOT_ARGS_MAX} characters")
        if found := _OURS.search(self.boot_args):
            raise ValueError(f'boot_args must not hold "{found[0].strip()}…": Corral says that itself')
        if self.snapshot_bytes_max < 0:
            raise ValueError("snapshot_bytes_max must not be negative")
        if not (self.probe_within_s > 0 and self.boot_within_s > 0):
            raise ValueError("probe_within_s and boot_within_s must be above 0 seconds")
