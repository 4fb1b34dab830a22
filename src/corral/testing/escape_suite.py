"""Attacks on a sandbox and what must come of them, as a pytest class: subclass it beside one fixture, ``runtime``.

::

    class TestMine(EscapeSuite):
        pass

The attacks are one small static C program, ``escape_attacks.c`` beside this file, compiled once and run inside
(``CORRAL_TEST_ATTACKS`` names one that is compiled already, for machines without a compiler). The table of
docs/reference/isolation.md is drawn from ``ATTACKS``: ``python -m corral.testing.escape_suite``.
"""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import pytest

from corral.kernel.errors import SandboxLost
from corral.sandboxes.model import End, ExecResult
from corral.sandboxes.ports import Runtime
from corral.sandboxes.sandbox import Completed, Sandbox
from corral.testing.runtime_contract import new_spec

_SOURCE: Final = Path(__file__).with_name("escape_attacks.c")
ATTACKS_VARIABLE: Final = "CORRAL_TEST_ATTACKS"
_RUN_WITHIN_S: Final = 60.0


class Verdict(StrEnum):
    """What came of an attack, from the best to the worst that is accepted."""

    DENIED = "denied"  # the kernel, or what stands in for it, refused every try
    KILLED = "killed"  # the system call filter killed the attacker
    LIMITED = "limited"  # a limit ended the attack with a result of its own
    CONTAINED = "contained"  # it worked, on nothing but the sandbox itself
    ENDED = "sandbox ended"  # a limit ended the attack and the whole sandbox, nobody else's


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack.

    Attributes:
        name: as the program knows it.
        what: for people.
        verdict: what must come of it.
        otherwise: where a runtime's verdict is another one.
    """

    name: str
    what: str
    verdict: Verdict = Verdict.DENIED
    otherwise: Mapping[str, Verdict] = field(default_factory=dict)

    def expected(self, runtime: str) -> Verdict:
        """What must come of it there."""
        return self.otherwise.get(runtime, self.verdict)


RUNTIMES: Final = ("bubblewrap", "oci", "gvisor", "qemu", "firecracker")
_GVISOR_ENDS: Final = {"gvisor": Verdict.ENDED}
_GVISOR_DENIES: Final = {"gvisor": Verdict.DENIED}
_GVISOR_CONTAINS: Final = {"gvisor": Verdict.CONTAINED}
ATTACKS: Final = (
    Attack(name="host-paths", what="a file of the host through /proc, `..` and descriptors"),
    Attack(name="private-files", what="shadow passwords, homes, devices, kernel memory"),
    Attack(name="kernel-settings", what="writing to /proc/sys, sysrq, interrupts"),
    Attack(name="core-pattern", what="a program that the kernel would start on a crash"),
    Attack(name="sys-files", what="writing to /sys: uevent helper, power, control groups"),
    Attack(name="mounts", what="mount, bind, remount, umount, pivot_root, chroot, the new mount calls"),
    Attack(name="release-agent", what="a control group's release agent"),
    Attack(
        name="symlink-mounts",
        what="an image whose /tmp, /work, /proc and /etc are links to the host",
        verdict=Verdict.CONTAINED,
    ),
    Attack(name="abstract-sockets", what="an abstract unix socket of the host"),
    Attack(name="host-network", what="the host's TCP ports, the network, metadata addresses"),
    Attack(name="odd-sockets", what="packet, AF_ALG, vsock, bluetooth, XDP and raw sockets"),
    Attack(name="ptrace", what="tracing process 1, reading its memory"),
    Attack(
        name="agent-files",
        what="memory, environment and descriptors of process 1",
        otherwise=_GVISOR_CONTAINS,
    ),
    Attack(name="kill-init", what="SIGKILL to process 1", verdict=Verdict.CONTAINED, otherwise=_GVISOR_ENDS),
    Attack(name="keyrings", what="kernel keyrings"),
    Attack(name="io-uring", what="io_uring"),
    Attack(name="userfaultfd", what="userfaultfd"),
    Attack(name="bpf-and-perf", what="bpf, perf events"),
    Attack(name="tiocsti", what="typing into a terminal (TIOCSTI), also with high bits set"),
    Attack(name="x32-calls", what="system calls of the x32 table", verdict=Verdict.KILLED),
    Attack(name="i386-calls", what="system calls of the i386 table", verdict=Verdict.KILLED, otherwise=_GVISOR_DENIES),
    Attack(name="clone3", what="clone3, whose flags a filter cannot see"),
    Attack(name="user-namespaces", what="nested namespaces: unshare, clone, setns"),
    Attack(name="device-nodes", what="making device nodes, and opening them", otherwise=_GVISOR_CONTAINS),
    Attack(name="become-root", what="other users, capabilities"),
    Attack(name="setuid-programs", what="the setuid bit"),
    Attack(name="descriptors", what="descriptors of the worker or of process 1"),
    Attack(name="file-handles", what="opening files by handle"),
    Attack(name="machine", what="reboot, modules, kexec, clock, host name, swap, accounting, kernel log"),
    Attack(name="priority", what="more of the processor by a better priority", otherwise=_GVISOR_CONTAINS),
    Attack(name="kernel-addresses", what="addresses of the kernel in /proc/kallsyms"),
    Attack(name="fork-bomb", what="4,000 processes", verdict=Verdict.LIMITED, otherwise=_GVISOR_ENDS),
    Attack(name="memory-bomb", what="1 GiB of memory", verdict=Verdict.LIMITED, otherwise=_GVISOR_ENDS),
    Attack(name="disk-bomb", what="512 MiB of disk", verdict=Verdict.LIMITED),
    Attack(name="file-bomb", what="5,000 files", verdict=Verdict.LIMITED, otherwise=_GVISOR_CONTAINS),
    Attack(name="terminal-bomb", what="5,000 terminals", verdict=Verdict.CONTAINED),
)
_BOMBS: Final = {
    "fork-bomb": End.PROCESS_LIMIT,
    "memory-bomb": End.OUT_OF_MEMORY,
    "disk-bomb": End.DISK_FULL,
    "file-bomb": End.FILE_LIMIT,
}


def verdict_table() -> str:
    """The Markdown table of attacks and verdicts."""
    lines = [f"| attack | {' | '.join(RUNTIMES)} |", f"|---|{'---|' * len(RUNTIMES)}"]
    for attack in ATTACKS:
        verdicts = " | ".join(attack.expected(runtime) for runtime in RUNTIMES)
        lines.append(f"| {attack.what} (`{attack.name}`) | {verdicts} |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Host:
    """What the attacks aim at: a file, an abstract socket and a port of the host, which everybody here may use."""

    file: str
    abstract: str
    port: int

    def arguments(self, attack: str) -> tuple[str, ...]:
        """What the program needs to know."""
        known = {"host-paths": self.file, "abstract-sockets": self.abstract, "host-network": str(self.port)}
        return (known[attack],) if attack in known else ()


@contextmanager
def targets(directory: Path) -> Iterator[Host]:
    """Set the targets up, and see that they can be reached from outside of a sandbox."""
    file = directory / "everybody-may-read-this"
    file.write_text("secret\n")
    name = f"corral-escape-{os.getpid()}"
    with ExitStack() as stack:
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        abstract.listen()
        listener = stack.enter_context(socket.socket())
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        yield Host(str(file), name, listener.getsockname()[1])


def compile_attacks(directory: Path) -> Path:
    """The program, static. Skips the test when there is no C compiler."""
    if given := os.environ.get(ATTACKS_VARIABLE):
        return Path(given)
    compiler = shutil.which("musl-gcc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install musl-tools")
    program = directory / "attack"
    subprocess.run([compiler, "-static", "-O1", "-w", "-o", program, _SOURCE], check=True, timeout=120)
    return program


class EscapeSuite:
    """See the module's docstring."""

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, tmp_path_factory: pytest.TempPathFactory) -> bytes:
        """The compiled attacks."""
        return compile_attacks(tmp_path_factory.mktemp("attacks")).read_bytes()

    @pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
    async def test_an_attack_gets_its_verdict(
        self, runtime: Runtime, program: bytes, tmp_path: Path, attack: Attack
    ) -> None:
        spec = new_spec()
        if attack.name == "symlink-mounts":
            spec = replace(spec, root=str(hostile_root(tmp_path / "root", program, aim=tmp_path)))
        neighbour = Sandbox(await runtime.start(new_spec(tenant="bob")))
        sandbox = Sandbox(await runtime.start(spec))
        try:
            with targets(tmp_path) as host:
                verdict, evidence = await _run(sandbox, attack, program, host.arguments(attack.name))
            harmed = (await neighbour.run("/bin/sh", "-c", "echo fine")).stdout != b"fine\n"
        finally:
            await sandbox.stop()
            await neighbour.stop()

        assert verdict == attack.expected(runtime.name), evidence
        assert not harmed, "another tenant's sandbox did not survive it"
        assert not (tmp_path / "made-inside").exists()

    async def test_the_targets_can_be_hit_without_a_sandbox(self, program: bytes, tmp_path: Path) -> None:
        attack = placed(program, tmp_path)
        with targets(tmp_path) as host:
            for name in ("host-paths", "abstract-sockets", "host-network"):
                done = await asyncio.to_thread(
                    subprocess.run, [attack, name, *host.arguments(name)], capture_output=True, check=True, timeout=20
                )
                assert done.stdout.startswith(b"ESCAPED"), (name, done.stdout)


def placed(program: bytes, directory: Path) -> Path:
    """An executable file of the attacks."""
    file = directory / "attack"
    file.write_bytes(program)
    file.chmod(0o755)
    return file


def hostile_root(directory: Path, program: bytes, *, aim: Path) -> Path:
    """A root with a program and no shell, whose directories lead to ``aim``."""
    directory.mkdir(mode=0o755)
    (directory / "bin").mkdir(mode=0o755)
    placed(program, directory / "bin")
    for name in ("tmp", "work", "proc", "dev", "run", "etc", "sys"):
        (directory / name).symlink_to(aim)
    for folder in (directory, *directory.parents):
        if folder.stat().st_uid == os.geteuid() and folder.is_relative_to(aim.parent):
            folder.chmod(folder.stat().st_mode | 0o055)
    return directory


async def _run(
    sandbox: Sandbox, attack: Attack, program: bytes, arguments: tuple[str, ...]
) -> tuple[Verdict | str, Completed | str]:
    inside = "/work/attack"
    if attack.name == "symlink-mounts":
        inside = "/bin/attack"
    else:
        await sandbox.write_file(inside, program, executable=True)
    try:
        done = await sandbox.run(inside, attack.name, *arguments, cwd="/work", timeout_s=_RUN_WITHIN_S)
    except SandboxLost as error:
        return ("lost without a reason" if attack.name in _BOMBS else Verdict.ENDED), str(error)
    return _verdict(attack, done, sandbox), done


def _verdict(attack: Attack, done: Completed, sandbox: Sandbox) -> Verdict | str:
    result: ExecResult = done.result
    if attack.name in _BOMBS and result.end is _BOMBS[attack.name]:
        return Verdict.LIMITED if sandbox.lost is None else Verdict.ENDED
    if result.end is End.SIGNALED:
        return Verdict.KILLED
    word = done.stdout.decode("utf-8", "replace").partition(":")[0]
    known = {verdict.value: verdict for verdict in Verdict}
    return known.get(word, word) if result.ok else f"{result.end} {result.message}"


if __name__ == "__main__":
    print(verdict_table())  # noqa: T201 - what this command is for
