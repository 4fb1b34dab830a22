"""Whether KVM runs our guests here: found by booting one, and remembered until the machine itself boots anew.

That /dev/kvm exists and answers says little: where this machine is a guest of certain hypervisors, a kernel in it
never gets to its first line.
"""

import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from corral.sandboxes.guest.machine import Accelerator

_log = structlog.get_logger(__name__)
KVM: Final = Path("/dev/kvm")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and for what: another QEMU, kit or boot of this machine is tried again."""

    boot: str
    tried: str
    works: bool
    why: str = ""


class Verdicts:
    """Keeps one verdict in ``file``. ``wanted`` decides without a trial when it is not empty."""

    def __init__(self, file: Path, *, wanted: str) -> None:
        self._file = file
        self._wanted = wanted
        self._verdict: Verdict | None = None

    @property
    def about(self) -> str:
        """For people; "" while nothing is known."""
        if self._wanted:
            return f", {self._wanted}"
        if self._verdict is None:
            return ""
        return ", KVM" if self._verdict.works else f", emulated (KVM: {self._verdict.why})"

    def known(self, tried: str) -> Accelerator | None:
        """What is known for ``tried``; None when it must be tried."""
        if self._wanted:
            return Accelerator(self._wanted)
        if not KVM.exists():
            return self._keep(Verdict(boot=_boot(), tried=tried, works=False, why="this machine has no /dev/kvm"))
        if self._verdict is None:
            self._verdict = self._read()
        if self._verdict is None or (self._verdict.boot, self._verdict.tried) != (_boot(), tried):
            return None
        return _of(self._verdict)

    def accept(self, tried: str) -> Accelerator:
        """A machine has booted."""
        return self._keep(Verdict(boot=_boot(), tried=tried, works=True))

    def refuse(self, tried: str, why: str) -> Accelerator:
        """None has, because of ``why``."""
        _log.warning("KVM does not run a guest here; machines are emulated", why=why)
        return self._keep(Verdict(boot=_boot(), tried=tried, works=False, why=why))

    def _keep(self, verdict: Verdict) -> Accelerator:
        if verdict != self._verdict:
            self._verdict = verdict
            fresh = self._file.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(verdict))
            os.replace(fresh, self._file)
        return _of(verdict)

    def _read(self) -> Verdict | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Verdict)
        except (OSError, msgspec.DecodeError):
            return None  # there is none yet, or none that can be used: it is tried


def _of(verdict: Verdict) -> Accelerator:
    return Accelerator.KVM if verdict.works else Accelerator.TCG


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
