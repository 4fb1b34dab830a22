"""Virtual machines, emulated: a boot against bare QEMU, a clone of a template, execs, and what clones share."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from bench.report import Row, at_most, p50
from corral.kernel.clock import SystemClock
from corral.kernel.units import format_size
from corral.sandboxes.guest import sample_root
from corral.sandboxes.guest.clock_rate import counter_khz
from corral.sandboxes.guest.greeting import ENTROPY_BYTES, Go, send_go, wait_hello
from corral.sandboxes.guest.kit import GuestKit, open_kit
from corral.sandboxes.guest.machine import Accelerator, Descriptors, MachineShape, Stage, arguments
from corral.sandboxes.guest.root_image import RootImages
from corral.sandboxes.link import Link, Setup
from corral.sandboxes.model import MIB, ExecRequest, SandboxSpec, Size
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.runtimes.qemu import PROGRAM_NAME, QemuRuntime
from corral.sandboxes.runtimes.qemu_config import QemuConfig
from corral.sandboxes.sandbox import Sandbox
from corral.testing.machines import kits, why_no_machines

_BOOTS = 11
_CLONES = 20
_EXECS = 50
_SIZE = Size(memory_bytes=256 * MIB, cpus=1.0, disk_bytes=64 * MIB)
_TRUE = ExecRequest(argv=("/bin/true",))
_DEBIAN_BOUND_S = 2.5
_MICRO_BOUND_S = 1.0


def measure() -> Sequence[Row]:
    """The rows; none, and a word why, where no machine can be started. ``CORRAL_TEST_KITS`` names another kernel."""
    if why := why_no_machines():
        print(f"machines: {why}: no figures", file=sys.stderr)
        return ()
    with tempfile.TemporaryDirectory(prefix="bench-machines-") as folder:
        (root := Path(folder) / "root").mkdir()
        sample_root.build(root, ("true", "sh"))
        Path(folder).chmod(0o755)
        return uvloop.run(_rows(Path(folder), str(root), open_kit(kits())))


async def _rows(work: Path, root: str, kit: GuestKit) -> list[Row]:
    rows: list[Row] = []
    kernel = kit.manifest.release
    with Home(work / "sandboxes") as home:
        image = await RootImages(work / "disks").image(root)
        bare_s, boots_s = [], []
        for number in range(_BOOTS):  # in turns, since the machine is never the same for long
            bare_s.append(await _bare_boot(kit, image))
            boots_s.append(await _boot(home, root, number))
        bare, booted = p50(bare_s), p50(boots_s)
        rows.append(at_most(f"boot of {kernel} to a sandbox", booted, "bare QEMU to our agent", bare, plus_s=0.05))
        bound_s = _DEBIAN_BOUND_S if kit.manifest.acpi else _MICRO_BOUND_S
        rows.append(at_most(f"boot of {kernel} to a sandbox", booted, "bound", bound_s))
        rows.extend(await _clone_rows(home, root))
    return rows


async def _bare_boot(kit: GuestKit, image: Path) -> float:
    ours, theirs = socket.socketpair()
    console, console_there = socket.socketpair()
    files = [os.open(path, os.O_RDONLY) for path in (kit.kernel, kit.initrd, image)]
    at = Descriptors(
        stream=theirs.fileno(), kernel=files[0], initrd=files[1], root=files[2], console=console_there.fileno()
    )
    shape = MachineShape(
        qemu="",
        accelerator=Accelerator.TCG,
        kit="",
        root="",
        memory_bytes=_SIZE.memory_bytes,
        processors=1,
        counter_khz=counter_khz(),
        acpi=kit.manifest.acpi,
    )
    began_s = time.perf_counter()
    passed = (*files, theirs.fileno(), console_there.fileno())
    process = subprocess.Popen(arguments(PROGRAM_NAME, shape, Stage.BOOT, at), pass_fds=passed)  # noqa: ASYNC220
    try:
        theirs.close()
        ours.setblocking(False)
        await wait_hello(ours)
        now_s = SystemClock().now_s()
        go = Go(unix_s=now_s, entropy=os.urandom(ENTROPY_BYTES), host_name="bare", memory_bytes=0, processes=0)
        await send_go(ours, go)
        link = await Link.open(ours, Setup())
        took_s = time.perf_counter() - began_s
        link.close()
        return took_s
    finally:
        process.kill()
        process.wait()
        for each in (console, console_there):
            each.close()
        for file in files:
            os.close(file)


async def _boot(home: Home, root: str, number: int) -> float:
    runtime = QemuRuntime(home, QemuConfig(accelerator="tcg", templates=False), kits=kits())
    began_s = time.perf_counter()
    box = await runtime.start(SandboxSpec(id=f"sbx_boot{number}", tenant="bench", root=root, size=_SIZE))
    took_s = time.perf_counter() - began_s
    await box.stop()
    runtime.close()
    return took_s


async def _clone_rows(home: Home, root: str) -> list[Row]:
    runtime = QemuRuntime(home, QemuConfig(accelerator="tcg"), kits=kits())
    try:
        async with AsyncExitStack() as stack:
            clone = _cloner(stack, runtime, root)
            await clone()  # makes the template
            before = _available_bytes()
            answers_s, firsts_s = [], []
            for _ in range(_CLONES):
                began_s = time.perf_counter()
                sandbox = await clone()
                answers_s.append(time.perf_counter() - began_s)
                await sandbox.exec(_TRUE)
                firsts_s.append(time.perf_counter() - began_s)
            each_bytes = (before - _available_bytes()) // _CLONES
            warm_s = [await _timed(sandbox.exec(_TRUE)) for _ in range(_EXECS)]
            alone_bytes = next(iter(runtime._templates._made.values())).resident_bytes
        return [
            at_most("a clone of a template answers", p50(answers_s), "bound", 0.15),
            at_most("a clone has run its first command", p50(firsts_s), "bound", 0.35),
            at_most("warm exec of true in a machine", p50(warm_s), "bound", 0.06),
            Row(
                what=f"memory of a clone, of {_CLONES}, QEMU's own included",
                ours=format_size(each_bytes),
                against=f"a booted machine's memory alone {format_size(alone_bytes)}",
                ratio=f"{each_bytes / alone_bytes:.2f} ×",
                bound="≤ 1 ×",
                ok=each_bytes <= alone_bytes,
            ),
        ]
    finally:
        runtime.close()


def _cloner(stack: AsyncExitStack, runtime: QemuRuntime, root: str) -> Callable[[], Awaitable[Sandbox]]:
    numbers: Iterator[int] = iter(range(1000))

    async def clone() -> Sandbox:
        box = await runtime.start(SandboxSpec(id=f"sbx_clone{next(numbers)}", tenant="bench", root=root, size=_SIZE))
        stack.push_async_callback(box.stop)
        return Sandbox(box)

    return clone


async def _timed(action: Awaitable[object]) -> float:
    began_s = time.perf_counter()
    await action
    return time.perf_counter() - began_s


def _available_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
