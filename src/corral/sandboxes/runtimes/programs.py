"""Programs of others that runtimes start: where they are, their versions, and what is known to be wrong with them."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from corral.kernel.errors import SandboxFailed

Version = tuple[int, ...]
_ASK_WITHIN_S: Final = 10.0
_NUMBER: Final = re.compile(r"(?:version\s+|\sv)(?:release-|0\.0~)?v?(\d+(?:\.\d+)*)")


class Policy(StrEnum):
    """What to do with a program of a version with known vulnerabilities."""

    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Advisory:
    """One published vulnerability.

    Attributes:
        fixed: the first versions without it, one per release branch, the oldest branch first.
        patched: words in the program's own version text that tell of a distribution's fix.
    """

    name: str
    program: str
    what: str
    fixed: tuple[Version, ...]
    patched: tuple[str, ...] = ()

    def concerns(self, version: Version, text: str) -> bool:
        """Whether this version has it. A branch between two fixed ones counts as the older."""
        if any(word in text for word in self.patched):
            return False
        branches = [fixed for fixed in self.fixed if fixed[:2] == version[:2]]
        return version < (branches[0] if branches else self.fixed[-1])


# From the projects' own advisories. What needs a feature that boxes never use (crun's krun, exec into a running
# container) is not listed.
ADVISORIES: Final = (
    Advisory("CVE-2019-5736", "runc", "a container overwrites the runtime's own binary", ((1, 0, 0),)),
    Advisory("CVE-2021-30465", "runc", "mounts out of the root by a symlink exchange", ((1, 0, 0),)),
    Advisory(
        "CVE-2024-21626",
        "runc",
        "a leaked descriptor leads to the host's files",
        ((1, 1, 12),),
        patched=("1.1.5+ds1-1+deb12u1",),
    ),
    Advisory("CVE-2025-31133", "runc", "masked paths are replaced while mounting", ((1, 2, 8), (1, 3, 3))),
    Advisory("CVE-2025-52565", "runc", "/dev/console is replaced while mounting", ((1, 2, 8), (1, 3, 3))),
    Advisory("CVE-2025-52881", "runc", "writes to /proc are redirected", ((1, 2, 8), (1, 3, 3))),
    Advisory("CVE-2019-18837", "crun", "the root is replaced by a symlink", ((0, 10, 5),)),
    Advisory("CVE-2022-27650", "crun", "inheritable capabilities are kept", ((1, 4, 4),)),
    Advisory("CVE-2023-7258", "runsc", "mounts exhaust a counter, and the sandbox ends", ((20240101,),)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An installed program.

    Attributes:
        name: which one it is, whatever its file is called.
        version: as it tells it.
        advisories: known vulnerabilities of that version.
    """

    name: str
    path: Path
    version: str
    advisories: tuple[Advisory, ...] = ()

    @property
    def about(self) -> str:
        """Name, version and what is known about it, for people."""
        known = f" (known vulnerabilities: {', '.join(each.name for each in self.advisories)})"
        return f"{self.name} {self.version}{known if self.advisories else ''}"


def find_program(wanted: str, names: Sequence[str], *, policy: Policy, cure: str) -> Program:
    """The program ``wanted`` (a name or a path; "" takes the first of ``names`` that is installed).

    Raises:
        SandboxFailed: it is not installed, it is none of ``names``, or its version is refused by ``policy``.
    """
    for candidate in [wanted] if wanted else names:
        path = shutil.which(candidate, path=_search_path())
        if path is not None:
            break
    else:
        missing = f'"{wanted}"' if wanted else f"{' or '.join(names)}"
        raise SandboxFailed(f"{missing} is not installed", cure=cure)
    program = _ask(Path(path), names)
    if program.advisories and policy is Policy.REFUSE:
        raise SandboxFailed(
            f"{program.about}: refused by configuration",
            cure=f'install a newer {program.name}, or set vulnerable = "warn"',
        )
    return program


def known_vulnerabilities(name: str, version: str, text: str = "") -> tuple[Advisory, ...]:
    """Advisories about ``version`` ("1.1.5") of a program; ``text`` is all that the program says about its version."""
    numbers = tuple(int(part) for part in version.split("."))
    return tuple(each for each in ADVISORIES if each.program == name and each.concerns(numbers, text))


def _ask(path: Path, names: Sequence[str]) -> Program:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, check=False, timeout=_ASK_WITHIN_S, env={})
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxFailed(f"{path} does not tell its version: {error}") from error
    text = done.stdout.decode("utf-8", "replace")
    name = next((name for name in names if text.lower().startswith(f"{name.lower()} ")), None)
    version = _NUMBER.search(text)
    if name is None or version is None:
        raise SandboxFailed(
            f"{path} is not {' or '.join(names)}: it says {text[:80]!r}", cure=f"name one of {', '.join(names)}"
        )
    return Program(name=name, path=path, version=version[1], advisories=known_vulnerabilities(name, version[1], text))


def _search_path() -> str:
    """Where root's programs lie too, whatever the worker's own PATH says."""
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"))
