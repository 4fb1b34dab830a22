"""Builds the static programs that the wheel carries: the agent that is process 1 of every sandbox, and the
launcher.

Compilers, in this order: musl-gcc, ``gcc -static``, and ``python -m ziglang cc`` from the ziglang wheel.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path(__file__).parent
CURE = "install musl-tools (Debian: apt-get install musl-tools), or gcc with static libc, or `pip install ziglang`"


class NativeBuildHook(BuildHookInterface[Any]):
    """Compiles before the wheel is packed, and marks the wheel as one of this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build_native()
        build_data["pure_python"] = False
        # The command itself is a script of the shell: make CC="corral cc gcc" must not start a Python for each file.
        build_data["shared_scripts"] |= {"src/corral/_native/corral-cc": "corral-cc", "native/cc/corral.sh": "corral"}
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"


def build_native() -> None:
    """Build every directory of native/ that has a Makefile. Raises RuntimeError with the cure."""
    make = shutil.which("make")
    if make is None:
        raise RuntimeError("building Corral's native programs needs make; Debian: apt-get install make")
    failures = []
    for compiler in _compilers():
        failure = _try_build(make, compiler)
        if failure is None:
            return
        failures.append(f"{compiler}: {failure}")
    raise RuntimeError("\n".join(("no C compiler here makes a static program.", *failures, f"Cure: {CURE}.")))


def _compilers() -> list[str]:
    found = [name for name in ("musl-gcc", "gcc") if shutil.which(name)]
    zig = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False)
    if zig.returncode == 0:
        found.append(f"{sys.executable} -m ziglang cc -target x86_64-linux-musl")
    return found


def _try_build(make: str, compiler: str) -> str | None:
    """None when all was built, else the compiler's words."""
    for makefile in sorted(NATIVE.glob("*/Makefile")):
        done = subprocess.run(
            [make, "-C", str(makefile.parent), f"CC={compiler}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return done.stderr.strip()
    return None


if __name__ == "__main__":
    build_native()
