"""Whether machines run here: Firecracker boots the guest's kernel, and the kernel comes to its end.

/dev/kvm may exist, answer, take a guest and then emulate it a thousand times too slowly to be of use; nothing but a
boot tells. The kernel is given no first program, so it boots through and panics, and Firecracker ends.
"""

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.guest.kit import GuestKit
from corral.sandboxes.runtimes.firecracker_config import FirecrackerConfig
from corral.sandboxes.runtimes.programs import Program, find_program

_KVM: Final = Path("/dev/kvm")
_CURE: Final = 'use the runtime "qemu", which needs no KVM, or "gvisor"'
_MEMORY_MIB: Final = 256
_REACHED: Final = ("No working init", "Unable to mount root", "Requested init /none failed")
_WORDS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Where Firecracker is, and its jailer; both of ``version``."""

    firecracker: Path
    jailer: Path
    version: str


def find_programs(config: FirecrackerConfig) -> Programs:
    """Raises SandboxFailed: one is not installed, they differ in version, or the version is refused."""
    firecracker = _find(config.firecracker, "firecracker", config)
    jailer = _find(config.jailer, "jailer", config)
    if firecracker.version != jailer.version:
        raise SandboxFailed(
            f"firecracker is {firecracker.version}, but its jailer is {jailer.version}",
            cure="install both from one release",
        )
    return Programs(firecracker=firecracker.path, jailer=jailer.path, version=firecracker.version)


def _find(wanted: str, name: str, config: FirecrackerConfig) -> Program:
    cure = f"install Firecracker's release, or name it in runtimes.firecracker.{name}"
    return find_program(wanted, (name,), policy=config.vulnerable, cure=cure)


def probe(programs: Programs, kit: GuestKit, *, boot_args: str, within_s: float) -> float:
    """Boot the kit's kernel; how long that took, in seconds. Blocks for at most ``within_s``.

    Raises SandboxFailed with the exact reason.
    """
    _check_device()
    machine = {
        "boot-source": {
            "kernel_image_path": str(kit.kernel),
            "boot_args": f"{boot_args} console=ttyS0 8250.nr_uarts=1 loglevel=4 rdinit=/none init=/none",
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": _MEMORY_MIB},
        "drives": [],
    }
    with tempfile.NamedTemporaryFile(prefix=f"corral-probe-{os.getpid()}-") as file:
        file.write(msgspec.json.encode(machine))
        file.flush()
        began_s = time.perf_counter()
        try:
            done = subprocess.run(
                [programs.firecracker, "--no-api", "--config-file", file.name, "--level", "Error", "--show-level"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=within_s,
                check=False,
                env={},
            )
        except subprocess.TimeoutExpired as error:
            said = _last_line(error.stdout or b"")
            raise SandboxFailed(
                f"no guest boots on this machine's /dev/kvm: after {within_s:g} s the guest's kernel "
                f"{f'had come to: {said}' if said else 'had not printed one line'}",
                cure=_CURE,
            ) from None
        except OSError as error:
            raise SandboxFailed(f"firecracker does not start: {error}") from error
    said = done.stdout.decode("utf-8", "replace")
    if not any(word in said for word in _REACHED):
        raise SandboxFailed(
            f"no guest boots on this machine's /dev/kvm: firecracker ended with status {done.returncode} and said: "
            f"{_last_line(done.stdout) or 'nothing'}",
            cure=_CURE,
        )
    return time.perf_counter() - began_s


def _check_device() -> None:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise SandboxFailed("this machine has no /dev/kvm", cure=_CURE) from None
    except OSError as error:
        raise SandboxFailed(f"/dev/kvm cannot be opened: {error.strerror}", cure=_CURE) from error


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").replace("\r", "").strip().splitlines()
    return lines[-1].strip()[-_WORDS:] if lines else ""
