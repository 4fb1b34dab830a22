"""A compile daemon of its own for a test: private directory, private store, wrappers started as make would."""

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import httpx

from corral.compile import cacheability, frames, grammars, key
from corral.compile.control import tell
from corral.compile.journal import Event, read_journal
from corral.compile.model import Bypass, CompilerIdentity, Vendor
from corral.compile.ports import CompileRequest
from corral.compile.rendezvous import world
from corral.entry import WRAPPER
from corral.testing import processes
from corral.testing.processes import CorralProcess, public_directory

_WAIT_S: Final = 20.0


class Compiles:
    """Runs compiles through the wrapper, and asks the daemon what became of them."""

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.store = home / "store"
        self.private = home / "run"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CORRAL_CC_DIR": str(self.private),
            "CORRAL_CC_PYTHON": sys.executable,
            "CORRAL_COMPILE__STORE": str(self.store),
            **(settings or {}),
        }

    def run(
        self, *words: str, cwd: Path, env: Mapping[str, str] | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        """The wrapper as ``corral-cc WORDS…``."""
        return subprocess.run(
            [WRAPPER, *words],
            cwd=cwd,
            env={**self.environment, **(env or {})},
            capture_output=True,
            timeout=60,
            check=False,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            **options,
        )

    def start(self, *words: str, cwd: Path, **options: Any) -> "subprocess.Popen[bytes]":
        """The wrapper, not waited for."""
        return subprocess.Popen([WRAPPER, *words], cwd=cwd, env=self.environment, **options)

    def events(self) -> list[Event]:
        """What the daemon tells of every request so far, the oldest first."""
        tell(self.environment, "flush")
        return list(read_journal(self.store, since_s=0))

    def outcomes(self) -> list[str]:
        """The outcomes of every request so far."""
        return [event.outcome.value for event in self.events()]

    @property
    def daemon(self) -> int:
        """Its pid; 0 when there is none."""
        answer = tell(self.environment, "flush")
        return 0 if answer is None else int(str(answer["pid"]))

    def entries(self, section: str) -> Sequence[Path]:
        """The files of the store: ``results`` or ``sets``."""
        return sorted((self.store / "v1" / section).glob("*/*"))

    def stop(self) -> None:
        """End the daemon, if there is one."""
        pid = self.daemon
        if pid:
            tell(self.environment, "stop")
            wait_until(lambda: has_ended(pid))


def compile_request(project: Path, argv: Sequence[str]) -> CompileRequest:
    """What the daemon makes of a command line in the root of a project, before it asks elsewhere."""
    root, environment = str(project), {"LC_ALL": "C"}
    words = (shutil.which(argv[0]) or argv[0], *argv[1:])
    invocation = grammars.parse(words)
    assert not isinstance(invocation, Bypass), invocation
    cacheable = cacheability.judge(invocation, environment)
    assert not isinstance(cacheable, Bypass), cacheable
    vendor = Vendor.CLANG if "clang" in words[0] else Vendor.GCC
    identity = CompilerIdentity(digest="ab" * 32, path=words[0], vendor=vendor)
    inputs = key.key_inputs(invocation, cacheable, identity=identity, environment=environment, cwd=root, root=root)
    return CompileRequest(
        argv=words,
        cwd=root,
        root=root,
        environment=environment,
        invocation=invocation,
        cacheable=cacheable,
        identity=identity,
        inputs=inputs,
        request_key=key.request_key(inputs),
        include_set=None,
    )


def ask_frame(
    token: bytes, *, cwd: str, program: str, arguments: Sequence[str], environment: Sequence[str], umask: int = 0o022
) -> bytes:
    """What the wrapper sends for one compile (docs/reference/compile-protocol.md), with this process's world."""
    blocks = [cwd.encode(), program.encode()]
    blocks += [b"".join(word.encode() + b"\0" for word in words) for words in (arguments, environment)]
    head = struct.pack("<BBBB32sIQQQ", frames.PROTOCOL, frames.COMPILE, 0, 0, token, umask, *world())
    return frames.framed(head + b"".join(struct.pack("<I", len(block)) + block for block in blocks))


@contextmanager
def compiles(settings: Mapping[str, str] | None = None) -> Iterator[Compiles]:
    """A home below /tmp that is gone afterwards, with its daemon."""
    home = Path(mkdtemp(prefix="corral-cc-"))
    ours = Compiles(home, settings)
    try:
        yield ours
    finally:
        ours.stop()
        shutil.rmtree(home)


@contextmanager
def compile_fleet() -> Iterator[CorralProcess]:
    """A ``corral up`` of two slots on which compiles can run: its worker's door can be dialed."""
    with public_directory() as home:
        up = CorralProcess(
            "up",
            home,
            "scheduler.http=127.0.0.1:0",
            "scheduler.grpc=127.0.0.1:0",
            "reapi.address=off",
            "worker.slots=2",
            "worker_door.listen=127.0.0.1:0",
        )
        try:
            up.start()
            processes.wait_until(lambda: _routes(up.url) > 0, "a worker that can be dialed", log=up.log)
            yield up
        finally:
            up.stop()


def _routes(url: str) -> int:
    answer = httpx.post(f"{url}/api/v1/routes", json={"slots": 1}, timeout=30)
    if answer.status_code != 200:
        return 0
    given = [each["id"] for each in answer.json()["routes"]]
    httpx.post(f"{url}/api/v1/routes", json={"slots": 0, "release": given}, timeout=30)
    return len(given)


def wait_until(condition: Callable[[], object]) -> None:
    """Poll until true; AssertionError when it never is."""
    deadline_s = time.monotonic() + _WAIT_S  # noqa: TID251 (a test's own patience)
    while not condition():
        assert time.monotonic() < deadline_s, "it never became true"  # noqa: TID251
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """True also for a process that init has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def aged(*files: Path) -> None:
    """Make files look as if they were written a while ago: what was just written is never trusted, nor stored."""
    wait_until(lambda: all(time.time() - file.stat().st_ctime > 0.02 for file in files))  # noqa: TID251
