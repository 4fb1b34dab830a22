"""Machines beyond the contract: what clones share and what each has alone, and what is told when one does not start."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import pytest
import pytest_asyncio

from corral.kernel.clock import SystemClock
from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes.guest.build import build_from_kernel
from corral.sandboxes.runtimes import accelerators
from corral.sandboxes.runtimes.qemu import QemuRuntime
from corral.sandboxes.runtimes.qemu_box import MachineBox
from corral.sandboxes.runtimes.qemu_config import QemuConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.sandboxes.sandbox import Sandbox
from corral.testing.machines import build_root, kits, why_no_machines
from corral.testing.runtime_contract import PATH, new_spec, processes_with, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
CLONES = 6


def config(**qemu: object) -> RuntimesConfig:
    own = QemuConfig(**({"accelerator": "tcg"} | qemu))  # type: ignore[arg-type]
    return RuntimesConfig(names=("qemu",), kits=str(kits()), start_within_s=40.0, qemu=own)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    if why := why_no_machines():
        pytest.skip(why)
    return str(build_root(tmp_path_factory.mktemp("image")))


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory, root: str) -> Iterator[QemuRuntime]:
    with open_runtimes(config(), tmp_path_factory.mktemp("sandboxes")) as runtimes:
        yield cast(QemuRuntime, runtimes["qemu"])


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def started(stack: AsyncExitStack, runtime: QemuRuntime, root: str) -> Sandbox:
    box = await runtime.start(replace(new_spec(), root=root))
    stack.push_async_callback(box.stop)
    return Sandbox(box)


async def test_clones_of_one_machine_have_nothing_in_common_but_memory_that_none_changed(
    qemu: QemuRuntime, root: str, stack: AsyncExitStack
) -> None:
    before = await asyncio.to_thread(_shared_bytes)

    clones = [await started(stack, qemu, root) for _ in range(CLONES)]

    script = "hostname; head -c 400 /dev/urandom | tr -dc a-z; echo; cat /proc/sys/kernel/random/boot_id; date +%s"
    said = [(await clone.run("sh", "-c", script, env=PATH)).stdout.decode().split() for clone in clones]
    now_s = SystemClock().now_s()
    for column in range(3):
        assert len({words[column] for words in said}) == CLONES, said
    assert [words[0] for words in said] == [clone.spec.id.replace("_", "-") for clone in clones]
    assert all(abs(int(words[3]) - now_s) < 60 for words in said)
    template = next(iter(qemu._templates._made.values()))
    assert await asyncio.to_thread(_shared_bytes) - before < 2.5 * template.resident_bytes  # not one copy each


def _shared_bytes() -> int:
    """Memory that belongs to files in memory, of the whole machine."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["Shmem"].split()[0]) * 1024


async def test_a_machine_whose_qemu_is_killed_is_lost_and_can_be_stopped(
    qemu: QemuRuntime, root: str, stack: AsyncExitStack
) -> None:
    sandbox = await started(stack, qemu, root)
    box = cast(MachineBox, sandbox._box)

    os.kill(box.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await sandbox.wait_lost()

    assert sandbox.lost is not None
    await box.stop()


async def test_what_qemu_says_is_why_it_did_not_start(tmp_path: Path, root: str) -> None:
    broken = tmp_path / "vmlinux"
    broken.write_bytes(b"\x7fELF" + bytes(200))
    build_from_kernel(broken, tmp_path / "kits", source="broken", acpi=True, processors=True, tell=lambda _: None)
    own = msgspec.structs.replace(config(), kits=str(tmp_path / "kits"))
    with open_runtimes(own, tmp_path / "sandboxes") as runtimes:
        with pytest.raises(SandboxFailed, match=r"qemu-system-x86_64: .*kernel"):
            await runtimes["qemu"].start(replace(new_spec(), root=root))

        assert await runtimes["qemu"].sweep() == 0


async def test_kvm_that_does_not_boot_in_time_is_not_used(
    tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever /dev/kvm is here: a boot in a millisecond fails on all of them."""
    if not accelerators.KVM.exists():
        pytest.skip("this machine has no /dev/kvm")
    own = config(accelerator="", kvm_within_s=0.001)
    with open_runtimes(own, tmp_path / "sandboxes") as runtimes:
        qemu = cast(QemuRuntime, runtimes["qemu"])
        async with AsyncExitStack() as stack:
            sandbox = await started(stack, qemu, root)
            assert (await sandbox.run("echo", "emulated", env=PATH)).stdout == b"emulated\n"
        assert "emulated (KVM: " in qemu.about
        (verdict,) = (tmp_path / "sandboxes").glob("kvm.json")
        assert not msgspec.json.decode(verdict.read_bytes(), type=accelerators.Verdict).works


async def test_an_empty_or_missing_root_is_refused(qemu: QemuRuntime, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    for given, sentence in (("", "none is named"), (str(tmp_path / "empty"), "is empty"), ("/no/such", "/no/such")):
        with pytest.raises(InvalidSpec, match=sentence):
            await qemu.start(replace(new_spec(), root=given))
    with pytest.raises(InvalidSpec, match="gives no network"):
        await qemu.start(replace(new_spec(), root=str(tmp_path), network=True))


_WORKER = """
import asyncio, sys
from pathlib import Path
from corral.sandboxes.model import SandboxSpec
from corral.sandboxes.runtimes.qemu_config import QemuConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes

async def main():
    own = RuntimesConfig(names=("qemu",), kits=sys.argv[2], start_within_s=40.0, qemu=QemuConfig(accelerator="tcg"))
    with open_runtimes(own, Path(sys.argv[1])) as runtimes:
        box = await runtimes["qemu"].start(SandboxSpec(id="sbx_orphan", tenant="ann", root=sys.argv[3]))
        print("up", box.pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_worker_s_machines_are_gone_at_the_next_start(tmp_path: Path, root: str) -> None:
    home = tmp_path / "sandboxes"
    command = [sys.executable, "-c", _WORKER, str(home), str(kits()), root]
    worker = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert worker.stdout is not None
    while not (line := await worker.stdout.readline()).startswith(b"up "):
        assert line, "it ended"  # what it logs comes before
    machine = int(line.split()[1])
    assert machine in processes_with("name=corral.agent")

    worker.kill()
    await worker.wait()
    with open_runtimes(config(), home) as runtimes:
        swept = await runtimes["qemu"].sweep()

    assert swept == 1
    await wait_until(lambda: not Path(f"/proc/{machine}/cmdline").exists())
