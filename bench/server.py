"""A whole `corral up` of its own, for as long as a `with` block lasts."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_START_S = 60.0
_STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running `corral up`: its address, its supervisor, and the scheduler and worker below it."""

    url: str
    supervisor: psutil.Process
    children: tuple[psutil.Process, ...]
    data: Path


@contextmanager
def running(*arguments: str) -> Iterator[Server]:
    """Start it on free ports with a fresh data directory and stop it again."""
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        home = Path(directory)
        ready, data = home / "ready", home / "data"
        command = [str(Path(sys.executable).parent / "corral"), "up", "--data-dir", str(data)]
        command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ready-file", str(ready), *arguments]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + _START_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"corral up did not start:\n{(home / 'log').read_text()}")
                time.sleep(0.02)
            words = dict(word.split("=", 1) for word in ready.read_text().split() if "=" in word)
            supervisor = psutil.Process(process.pid)
            yield Server(url=words["http"], supervisor=supervisor, children=tuple(supervisor.children()), data=data)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
