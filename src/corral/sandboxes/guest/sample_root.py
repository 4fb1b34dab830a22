"""A small root made of a few of the host's own programs and the libraries that they need, for trials."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.runtimes.host_root import GROUP, PASSWD

_LINKED: Final = re.compile(r"(/\S+) \(0x[0-9a-f]+\)")
_TOPS: Final = ("bin", "sbin", "lib", "lib64")
_ASK_WITHIN_S: Final = 10.0


def build(directory: Path, programs: Iterable[str]) -> Path:
    """Fill the empty ``directory``: everything below /usr, the short names as links to it. Blocking.

    Raises SandboxFailed when a program is not on this machine.
    """
    for name in _TOPS:
        (directory / "usr" / name).mkdir(parents=True)
        (directory / name).symlink_to(f"usr/{name}")
    for program in programs:
        path = shutil.which(program)
        if path is None:
            raise SandboxFailed(f"{program} is not installed on this machine")
        for file in (path, *_libraries(path)):
            _copy(file, directory)
    (directory / "etc").mkdir()
    (directory / "etc/passwd").write_text(PASSWD)
    (directory / "etc/group").write_text(GROUP)
    return directory


def _libraries(program: str) -> list[str]:
    """What ``ldd`` names; nothing for a static program."""
    try:
        done = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=_ASK_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxFailed(f"ldd does not tell what {program} needs: {error}") from error
    return _LINKED.findall(done.stdout)


def _copy(file: str, directory: Path) -> None:
    """Under the name by which it is asked for, whatever links the host has on the way."""
    place = directory / "usr" / os.path.relpath(file, "/usr" if file.startswith("/usr/") else "/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        shutil.copyfile(file, place)
        place.chmod(0o755)
