"""What works on this machine, found by doing it: every runtime starts a sandbox, runs a command and kills one."""

import asyncio
import fcntl
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from corral.kernel.clock import Clock
from corral.kernel.concurrency import finish
from corral.kernel.errors import CorralError, SandboxFailed
from corral.kernel.units import format_duration, format_size
from corral.sandboxes.guest import sample_root
from corral.sandboxes.guest.kit import default_data_directory, open_kit
from corral.sandboxes.link import agent_path
from corral.sandboxes.model import GIB, MIB, End, ExecRequest, SandboxSpec, Size
from corral.sandboxes.runtimes.child import launcher_path
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.qemu_config import QemuConfig
from corral.sandboxes.runtimes.registry import ABSENT, KNOWN, MACHINES, RuntimesConfig
from corral.sandboxes.sandbox import Sandbox

_SIZE: Final = Size(memory_bytes=64 * MIB, processes=32, files=1000, disk_bytes=16 * MIB)
_TRIED: Final = ("echo", "sleep")
_ENV: Final = (("PATH", "/usr/local/bin:/usr/bin:/bin"),)
_KVM_GET_API_VERSION: Final = 0xAE00
_DISK_WANTED_BYTES: Final = 2 * GIB
_DESCRIPTORS_WANTED: Final = 1024
_THREAD_WITHIN_S: Final = 30.0  # the programs that a runtime asks for their versions have deadlines of their own

T = TypeVar("T")


class RuntimeFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime. ``detail`` says what was done, or in its own words why it does not work; ``cure`` what to do."""

    name: str
    works: bool
    detail: str
    cure: str = ""


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One property of the machine; ``good`` is False when something is worse for it, and ``cure`` then says more."""

    name: str
    good: bool
    detail: str
    cure: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found."""

    runtimes: tuple[RuntimeFinding, ...]
    facts: tuple[Fact, ...]

    @property
    def healthy(self) -> bool:
        """The default runtime works."""
        return any(finding.works for finding in self.runtimes if finding.name == "bubblewrap")


async def examine(
    *, clock: Clock, directory: Path | None = None, within_s: float = 10.0, machine_within_s: float = 40.0
) -> Report:
    """Try every runtime, all at once, for at most ``within_s``, and those that boot a machine longer; leaves nothing
    behind.

    ``directory`` is where the data lies, or would (its disk and its guest kit are looked at); the trial itself uses a
    temporary one.
    Cancellation: whatever was started is freed first.
    """
    data = directory or default_data_directory()
    config = RuntimesConfig(kits=str(data / "guest"), qemu=QemuConfig(templates=False))
    findings: dict[str, RuntimeFinding] = {}
    with (
        tempfile.TemporaryDirectory(prefix=f"corral-doctor-{os.getpid()}-") as temporary,
        Home(Path(temporary)) as home,
    ):
        async with asyncio.TaskGroup() as trials:
            for name in KNOWN:
                longest_s = machine_within_s if name in MACHINES else within_s
                trial = _note_trial(findings, name, home, clock, longest_s, config)
                trials.create_task(trial, name=f"doctor:{name}")
        facts = (_cgroups(home), *_facts(data), _kit(Path(config.kits)))
    absent = [
        RuntimeFinding(name=name, works=False, detail=why, cure='use the runtime "bubblewrap"')
        for name, why in ABSENT.items()
    ]
    return Report(runtimes=(*(findings[name] for name in KNOWN), *absent), facts=facts)


async def _note_trial(
    findings: dict[str, RuntimeFinding],
    name: str,
    home: Home,
    clock: Clock,
    within_s: float,
    config: RuntimesConfig,
) -> None:
    try:
        async with asyncio.timeout(within_s):
            detail = await _try_runtime(name, home, clock, config)
    except TimeoutError:
        detail = f"no result within {within_s:g} s"
        findings[name] = RuntimeFinding(name=name, works=False, detail=detail, cure="the machine is too busy, or stuck")
    except (CorralError, OSError) as error:
        cure = error.cure if isinstance(error, CorralError) else ""
        findings[name] = RuntimeFinding(name=name, works=False, detail=str(error), cure=cure or _cure_of(str(error)))
    else:
        findings[name] = RuntimeFinding(name=name, works=True, detail=detail)


async def _try_runtime(name: str, home: Home, clock: Clock, config: RuntimesConfig) -> str:
    with ExitStack() as made:
        # in a thread: a runtime copies files and asks programs for their versions, and others are being timed
        runtime = await _in_thread(lambda: made.enter_context(closing(KNOWN[name](home, config))))
        root = ""
        if name in MACHINES:  # they boot from an image only
            (place := home.directory / f"root-{name}").mkdir()
            root = str(await _in_thread(lambda: sample_root.build(place, _TRIED)))
        began_s = clock.monotonic_s()
        # every trial has its own id; the home is new, so nothing else has one
        box = await runtime.start(SandboxSpec(id=f"sbx_doctor_{name}", tenant="doctor", root=root, size=_SIZE))
        ready_s = clock.monotonic_s() - began_s
        sandbox = Sandbox(box)
        try:
            ran_s = await _run_and_kill(sandbox, clock)
        finally:
            await finish(sandbox.stop(), within_s=10)
        notes = "".join(f"; {note}" for note in box.link.notes)
        about = f"{runtime.about}: " if runtime.about else ""
        return f"{about}ready in {format_duration(ready_s)}, a command in {format_duration(ran_s)}{notes}"


async def _in_thread(work: Callable[[], T]) -> T:
    """What ``work`` returns. Cancellation: delayed until it has returned; nothing can stop a thread, and what one makes
    after we have cleaned up would stay."""
    results: list[T] = []

    async def carry_out() -> None:
        results.append(await asyncio.to_thread(work))

    await finish(carry_out(), within_s=_THREAD_WITHIN_S)
    return results[0]


async def _run_and_kill(sandbox: Sandbox, clock: Clock) -> float:
    began_s = clock.monotonic_s()
    said = await sandbox.run("echo", "hello", env=dict(_ENV), cwd="/work")
    ran_s = clock.monotonic_s() - began_s
    if not said.result.ok or said.stdout != b"hello\n":
        raise SandboxFailed(f"`echo hello` ended as {said.result.end} {said.result.message} {said.stderr[:200]!r}")
    killed = await sandbox.exec(ExecRequest(argv=("sleep", "60"), env=_ENV, cwd="/work", timeout_s=0.05))
    if killed.end is not End.TIMED_OUT:
        raise SandboxFailed(f"`sleep 60` could not be killed: it ended as {killed.end} {killed.message}")
    return ran_s


def _cure_of(words: str) -> str:
    """What usually helps when bubblewrap says this."""
    if "user namespace" in words or "uid map" in words or "Creating new namespace" in words:
        return (
            "allow unprivileged user namespaces: sysctl user.max_user_namespaces=10000, and where they exist "
            "kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if "loopback" in words or "mount proc" in words:
        return "inside a container: start it with --security-opt seccomp=unconfined and an unmasked /proc"
    return ""


def _cgroups(home: Home) -> Fact:
    groups = home.cgroups
    missing = {"memory", "pids", "cpu"} - groups.hard
    detail = f"layout {groups.layout}: hard limits on {', '.join(sorted(groups.hard)) or 'nothing'}"
    if not missing:
        return Fact(name="control groups", good=True, detail=detail)
    return Fact(
        name="control groups",
        good=False,
        detail=f"{detail}; {groups.why}. Limits on {', '.join(sorted(missing))} are per process (rlimits), or absent",
        cure="run the worker as root, or in a delegated group (systemd: Delegate=yes)",
    )


def _facts(directory: Path) -> Iterator[Fact]:
    yield _user_namespaces()
    yield _kvm()
    yield _program("agent", agent_path)
    yield _program("launcher", launcher_path)
    compilers = [name for name in ("musl-gcc", "gcc", "clang", "zig") if shutil.which(name)]
    detail = ", ".join(compilers) or "none (only needed to build Corral from source)"
    yield Fact(name="C compilers", good=True, detail=detail)
    yield _disk(directory)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Fact(
        name="open files",
        good=soft >= _DESCRIPTORS_WANTED,
        detail=f"at most {soft}",
        cure="" if soft >= _DESCRIPTORS_WANTED else f"ulimit -n {_DESCRIPTORS_WANTED} or more; a sandbox costs two",
    )


def _user_namespaces() -> Fact:
    most = _setting("user/max_user_namespaces")
    refused = [
        name
        for name, bad in (("kernel/unprivileged_userns_clone", 0), ("kernel/apparmor_restrict_unprivileged_userns", 1))
        if _setting(name) == bad
    ]
    if most == 0:
        refused.append("user/max_user_namespaces")
    good = not refused
    return Fact(
        name="user namespaces",
        good=good,
        detail=f"at most {most}" if good else f"refused by {', '.join(refused)}",
        cure="" if good else "; ".join(f"sysctl -w {name.replace('/', '.')}=…" for name in refused),
    )


def _kvm() -> Fact:
    device = Path("/dev/kvm")
    if not device.exists():
        return Fact(
            name="KVM", good=False, detail="no /dev/kvm", cure="enable virtualisation, or nested virtualisation"
        )
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Fact(name="KVM", good=False, detail=f"/dev/kvm: {error.strerror}", cure="add the user to the group kvm")
    try:
        version = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION)
    except OSError as error:
        return Fact(name="KVM", good=False, detail=f"/dev/kvm does not answer: {error.strerror}")
    finally:
        os.close(descriptor)
    return Fact(name="KVM", good=True, detail=f"/dev/kvm answers (API {version}); whether a guest runs was not tried")


def _program(name: str, find: Callable[[], Path]) -> Fact:
    try:
        path = find()
    except SandboxFailed as error:
        return Fact(name=name, good=False, detail=str(error), cure=error.cure)
    return Fact(name=name, good=True, detail=f"{path}, {format_size(path.stat().st_size)}")


def _kit(kits: Path) -> Fact:
    try:
        return Fact(name="guest kit", good=True, detail=open_kit(kits).about)
    except SandboxFailed as error:
        return Fact(name="guest kit", good=False, detail=error.message, cure=error.cure)


def _disk(directory: Path) -> Fact:
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    good = free >= _DISK_WANTED_BYTES
    return Fact(
        name="disk space",
        good=good,
        detail=f"{format_size(free)} free at {directory}",
        cure="" if good else "free some, or choose another data directory",
    )


def _setting(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return None
