"""A real Corral of a test's own: `corral up`, `corral scheduler` or `corral worker` as a child process.

A process started here dies with the thread that started it, so that a test that is killed leaves nothing behind.
"""

import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from corral.kernel.errors import CorralError
from corral.sandboxes.link import agent_path
from corral.sandboxes.runtimes.sealed import reachable

START_WITHIN_S: Final = 90.0
_STOP_WITHIN_S: Final = 40.0
_NOBODY: Final = 65534
_ANY_PORT: Final = ("engine.front.listen=127.0.0.1:0", "reapi.address=127.0.0.1:0")
"""For what listens at a well-known port by default: several of us run at once, and whoever waits for a taken port opens
it when another one ends, in the middle of a test that counts what is open."""
_READY: Final = re.compile(r"^ready http=(https?://\S+) grpc=(\S+)(?: reapi=(\S+))?$", re.MULTILINE)


def why_no_agent() -> str:
    """Why sandboxes cannot start here; "" when they can."""
    try:
        agent_path()
    except CorralError as error:
        return str(error)
    return ""


def living_children(parent: psutil.Process, word: str) -> list[psutil.Process]:
    """Those with ``word`` in their command line. NoSuchProcess when the parent is gone; a child that ends while it is
    looked at has ended."""
    living = []
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):  # psutil's word for a zombie, too
            if word in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                living.append(child)
    return living


class CorralProcess:
    """One ``corral ROLE`` on one directory; may be started again and again, on the same ports.

    ``home`` holds everything: the data directory, the words of every start (``log``), and the temporary files too if
    everybody can reach it (a sandbox's root may lie among them, and its user is nobody).
    ``settings`` are ``KEY=VALUE`` as for ``--set``. ``wrapper`` is put before the command line.
    """

    def __init__(
        self, role: str, home: Path, *settings: str, env: dict[str, str] | None = None, wrapper: Sequence[str] = ()
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.role = role
        self.home = home
        self.data = home / "data"
        public = reachable(home / "tmp", uid=_NOBODY, gid=_NOBODY)
        self.temporary = home / "tmp" if public else Path(tempfile.gettempdir())
        self.log = home / f"{role}.log"
        self.url = self.grpc = self.reapi = ""
        self._ready_file = home / "ready"
        self._settings = (*_ANY_PORT, *settings)
        self._env = env or {}
        self._wrapper = tuple(wrapper)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begins = 0
        if public:
            self.temporary.mkdir(exist_ok=True)
            self.temporary.chmod(0o1777)

    def start_nowait(self) -> None:
        """Start it; look at :meth:`is_ready`."""
        self._log_begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._wrapper, "setpriv", "--pdeathsig", "KILL", *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**clean_environment(), "TMPDIR": str(self.temporary), **self._env},
                cwd=self.home,
            )

    def start(self, *, within_s: float = START_WITHIN_S) -> None:
        """Start it and wait until it is ready."""
        self.start_nowait()
        wait_until(self.is_ready, f"a ready {self.role}", within_s=within_s, log=self.log)

    def is_ready(self) -> bool:
        """True when it serves; then ``url`` and ``grpc`` are known. Raises AssertionError when it has ended."""
        self.check_alive()
        words = self.words()
        if self.role == "worker":
            return "event=scheduler-connected" in words
        if self.role == "up" and not self._ready_file.exists():
            return False
        match = _READY.search(self._ready_file.read_text() if self.role == "up" else words)
        if match:
            self.url, self.grpc, self.reapi = match[1], match[2], match[3] or ""
        return match is not None

    def check_alive(self) -> None:
        """Raises AssertionError, with its words, when it has ended."""
        assert self._process is not None, "not started"
        status = self._process.poll()
        assert status is None, f"{self.role} ended with status {status}:\n{self.words()}"

    def words(self) -> str:
        """What it said since its last start."""
        with self.log.open(errors="replace") as log:
            log.seek(self._log_begins)
            return log.read()

    @property
    def process(self) -> psutil.Process:
        """The running process."""
        assert self._process is not None, "not started"
        return psutil.Process(self._process.pid)

    def child(self, role: str) -> psutil.Process | None:
        """The scheduler or the worker below ``corral up``, if it lives."""
        with suppress(psutil.NoSuchProcess):
            return next(iter(living_children(self.process, role)), None)
        return None

    def signal(self, number: int) -> None:
        """Send a signal to the process itself; nothing when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``; what it leaves behind is not waited for."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit status. Kills it, and fails, when it does not end. Idempotent."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.role} did not stop:\n{self.words()}") from None
        return self._process.returncode

    def wait_ended(self, *, within_s: float) -> int:
        """Its exit status, for one that ends by itself. Raises subprocess.TimeoutExpired."""
        assert self._process is not None, "not started"
        return self._process.wait(within_s)

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "corral", self.role, "--data-dir", str(self.data)]
        if self.role == "up":
            command += ["--ready-file", str(self._ready_file)]
        for each in self._settings:
            command += ["--set", each]
        return command


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, outside the range from which the kernel takes those of connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def fixed_addresses() -> tuple[str, str]:
    """Settings that make a scheduler, or ``corral up``, listen at the same free ports at every start."""
    http, grpc = free_ports(2)
    return f"scheduler.http=127.0.0.1:{http}", f"scheduler.grpc=127.0.0.1:{grpc}"


def clean_environment() -> dict[str, str]:
    """Ours, without what would configure a Corral."""
    return {name: text for name, text in os.environ.items() if not name.startswith("CORRAL_") or name == "CORRAL_AGENT"}


def wait_until(met: Callable[[], bool], what: str, *, within_s: float = 30.0, log: Path | None = None) -> None:
    """Look again and again. Raises AssertionError, with the end of ``log``, when ``within_s`` passed."""
    until_s = time.monotonic() + within_s  # noqa: TID251 (tests of real processes live in real time)
    while not met():
        if time.monotonic() > until_s:  # noqa: TID251
            said = log.read_text(errors="replace")[-8000:] if log is not None and log.exists() else ""
            raise AssertionError(f"{what} did not come within {within_s:g} s\n{said}")
        time.sleep(0.02)


@contextmanager
def public_directory() -> Iterator[Path]:
    """A directory that everybody on this host can reach, as sandboxes of a root worker must; pytest's are private."""
    path = Path(tempfile.mkdtemp(prefix=f"corral-test-{os.getpid()}-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def processes_of(home: Path) -> list[str]:
    """Living processes that have ``home`` in their command line or environment, as text: what must not be left."""
    found = []
    mark = os.fsencode(str(home))
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or entry.name == str(os.getpid()):
            continue
        try:
            command = Path(entry.path, "cmdline").read_bytes()
            known = command + Path(entry.path, "environ").read_bytes()
        except OSError:
            continue  # it ended while we looked
        if command and mark in known:
            found.append(f"{entry.name} {command.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    return found


def sandbox_groups(data: Path) -> list[str]:
    """Control groups of the sandboxes of the worker whose data directory is ``data``."""
    name = "corral-" + hashlib.sha256(str((data / "sandboxes").resolve()).encode()).hexdigest()[:12]  # as ``Home``
    return [os.path.join(folder, name) for folder, folders, _ in os.walk("/sys/fs/cgroup") if name in folders]


def terminate_all(processes: Sequence[CorralProcess]) -> None:
    """Stop them in order; every one is tried."""
    failures = []
    for each in processes:
        try:
            each.stop()
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, "\n".join(failures)
