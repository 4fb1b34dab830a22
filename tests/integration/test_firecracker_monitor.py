"""Firecracker's own life on this machine's /dev/kvm: jail, API, serial line and snapshots, with the smallest guest.

A guest of 250 bytes runs even where KVM emulates a Linux guest a thousand times too slowly.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.guest.kit import GuestKit, open_kit
from corral.sandboxes.runtimes.child import launcher_path
from corral.sandboxes.runtimes.firecracker_api import (
    BootSource,
    MachineConfig,
    MemoryBackend,
    SnapshotFiles,
    SnapshotSource,
    Vsock,
)
from corral.sandboxes.runtimes.firecracker_config import FirecrackerConfig
from corral.sandboxes.runtimes.firecracker_jail import VSOCK, Jail
from corral.sandboxes.runtimes.firecracker_probe import find_programs, probe
from corral.sandboxes.runtimes.firecracker_vmm import Vmm
from corral.testing.firecracker import TINY_SAYS, FirecrackerAbsent, firecracker_programs, tiny_guest
from corral.testing.machines import kits
from corral.testing.runtime_contract import belongings, left_behind, processes_with, wait_until

USER = 0x70000001
WITHIN_S = 10.0
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def programs() -> Path:
    if os.geteuid() != 0:
        pytest.skip("the jailer of firecracker needs root")
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        return firecracker_programs()
    except (OSError, FirecrackerAbsent) as error:
        pytest.skip(str(error))


@pytest.fixture
def make_jail(programs: Path, tmp_path: Path) -> Iterator[Callable[[str], Jail]]:
    assert launcher_path().exists()
    made: list[Jail] = []

    def make(name: str) -> Jail:
        jail = Jail(folder=tmp_path / name, name=name, program=programs / "firecracker", user=(USER, USER))
        made.append(jail)
        return jail

    yield make
    for jail in made:
        jail.remove()


@asynccontextmanager
async def monitor(jail: Jail, programs: Path) -> AsyncIterator[Vmm]:
    """A monitor in its jail that has been told nothing."""
    command = jail.command(programs / "jailer", file_bytes_max=64 * MIB)
    vmm = await Vmm.start(jail, command, (), within_s=WITHIN_S)
    try:
        yield vmm
    finally:
        vmm.kill()
        await vmm.wait_ended(within_s=WITHIN_S)
        vmm.close()


def guest_file(folder: Path, *, forever: bool = False) -> Path:
    file = folder / "tiny"
    file.write_bytes(tiny_guest(forever=forever))
    file.chmod(0o644)
    return file


async def configure(vmm: Vmm) -> None:
    await vmm.api.set_machine(MachineConfig(vcpu_count=1, mem_size_mib=16))
    await vmm.api.set_boot_source(BootSource(kernel_image_path="/kernel", boot_args="none"))
    await vmm.api.set_vsock(Vsock(guest_cid=3, uds_path=f"/{VSOCK}"))


async def test_a_guest_boots_speaks_and_ends(make_jail: Callable[[str], Jail], programs: Path, tmp_path: Path) -> None:
    jail = make_jail("tiny-boots")
    jail.make({"kernel": guest_file(tmp_path)})

    async with monitor(jail, programs) as vmm:
        assert (await vmm.api.describe()).state == "Not started"
        await configure(vmm)
        await vmm.api.start()

        assert await vmm.wait_ended(within_s=WITHIN_S)
        fault = await vmm.wait_fault()

    assert TINY_SAYS in vmm.console.text or TINY_SAYS in fault.message
    assert not processes_with("tiny-boots")


async def test_the_monitor_is_an_unprivileged_process_1_in_a_root_of_its_own(
    make_jail: Callable[[str], Jail], programs: Path, tmp_path: Path
) -> None:
    jail = make_jail("tiny-jailed")
    jail.make({"kernel": guest_file(tmp_path)})

    async with monitor(jail, programs) as vmm:
        facts = facts_of(vmm.pid)

        assert set(facts["Uid"].split()) == set(facts["Gid"].split()) == {str(USER)}
        assert facts["NSpid"].split()[-1] == "1"
        assert int(facts["CapEff"], 16) == 0
        assert inode_of(f"/proc/{vmm.pid}/root") == inode_of(str(jail.root))
        assert writable_by_user(jail.root / "kernel") is False


async def test_a_refusal_of_the_api_comes_in_its_own_words(
    make_jail: Callable[[str], Jail], programs: Path, tmp_path: Path
) -> None:
    jail = make_jail("tiny-refused")
    jail.make({"kernel": guest_file(tmp_path)})

    async with monitor(jail, programs) as vmm:
        with pytest.raises(SandboxFailed, match=r"PUT /boot-source: .*kernel file cannot be opened"):
            await vmm.api.set_boot_source(BootSource(kernel_image_path="/absent", boot_args=""))
        with pytest.raises(SandboxFailed, match=r"PUT /machine-config: .*memory"):
            await vmm.api.set_machine(MachineConfig(vcpu_count=1, mem_size_mib=0))
        with pytest.raises(SandboxFailed, match="PUT /snapshot/load"):
            await vmm.api.load_snapshot(
                SnapshotSource(snapshot_path="/no", mem_backend=MemoryBackend(backend_path="/no"))
            )


async def test_a_frozen_guest_goes_on_in_another_jail(
    make_jail: Callable[[str], Jail], programs: Path, tmp_path: Path
) -> None:
    first, second = make_jail("tiny-first"), make_jail("tiny-second")
    first.make({"kernel": guest_file(tmp_path, forever=True)})
    async with monitor(first, programs) as vmm:
        await configure(vmm)
        await vmm.api.start()
        await wait_until(lambda: "." in vmm.console.text.partition(TINY_SAYS[1:])[2], within_s=WITHIN_S)
        await vmm.api.pause()
        assert (await vmm.api.describe()).state == "Paused"
        files = SnapshotFiles(snapshot_path="/state", mem_file_path="/memory")
        await vmm.api.create_snapshot(files, within_s=WITHIN_S)

    second.make({"state": first.root / "state", "memory": first.root / "memory"})
    async with monitor(second, programs) as vmm:
        source = SnapshotSource(snapshot_path="/state", mem_backend=MemoryBackend(backend_path="/memory"))
        await vmm.api.load_snapshot(source)

        await wait_until(lambda: vmm.console.text.count(".") > 1, within_s=WITHIN_S)

    assert TINY_SAYS not in vmm.console.text, "it began anew instead of going on"


async def test_a_program_that_is_no_firecracker_fails_with_the_jailer_s_words(
    make_jail: Callable[[str], Jail], programs: Path, tmp_path: Path
) -> None:
    before = belongings()
    wrong = tmp_path / "no-firecracker"
    wrong.write_text("#!/bin/false\n")
    jail = Jail(folder=tmp_path / "wrong", name="wrong", program=wrong, user=(USER, USER))
    jail.make({})
    try:
        with pytest.raises(SandboxFailed, match=r"jailer|exec"):
            async with monitor(jail, programs):
                pass
    finally:
        jail.remove()

    assert left_behind(before) == {}


async def test_a_machine_that_boots_no_guest_is_refused_with_the_reason(programs: Path) -> None:
    config = FirecrackerConfig(firecracker=str(programs / "firecracker"), jailer=str(programs / "jailer"))
    found = find_programs(config)
    assert found.version == "1.12.1"

    with pytest.raises(
        SandboxFailed, match=r"no guest boots on this machine's /dev/kvm: after 0\.2 s the guest's kernel"
    ):
        probe(found, _kit(), boot_args=config.boot_args, within_s=0.2)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"boot_args": "root=/dev/vdb"}, "Corral says that itself"),
        ({"boot_args": "a\nb"}, "one line"),
        ({"probe_within_s": 0.0}, "above 0"),
        ({"snapshot_bytes_max": -1}, "negative"),
    ],
)
def test_a_mistake_in_the_configuration_is_found_when_it_is_read(mistake: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FirecrackerConfig(**mistake)  # type: ignore[arg-type]


def test_firecracker_and_its_jailer_must_be_of_one_version(tmp_path: Path) -> None:
    for name, version in (("firecracker", "1.12.1"), ("jailer", "1.11.0")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name.capitalize()} v{version}\n")
        (tmp_path / name).chmod(0o755)
    config = FirecrackerConfig(firecracker=str(tmp_path / "firecracker"), jailer=str(tmp_path / "jailer"))

    with pytest.raises(SandboxFailed, match=r"firecracker is 1\.12\.1, but its jailer is 1\.11\.0"):
        find_programs(config)


def _kit() -> GuestKit:
    return open_kit(kits())


def facts_of(pid: int) -> dict[str, str]:
    status = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def inode_of(path: str) -> int:
    return os.stat(path).st_ino


def writable_by_user(path: Path) -> bool:
    status = path.stat()
    return status.st_uid == USER or bool(status.st_mode & 0o002)
