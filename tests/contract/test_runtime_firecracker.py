"""The firecracker runtime keeps the contracts of runtimes and snapshots and stands the attacks, wherever a guest boots.

Where none does it skips with the reason that the runtime gives. ``tests/integration/test_firecracker_nested.py`` runs
this same file in a machine with emulated virtualisation, so that it runs everywhere.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from corral.kernel.errors import CorralError, InvalidSpec, SandboxFailed
from corral.sandboxes.model import GIB
from corral.sandboxes.ports import Runtime, Snapshotting
from corral.sandboxes.runtimes.firecracker import FirecrackerRuntime
from corral.sandboxes.runtimes.firecracker_box import FirecrackerBox
from corral.sandboxes.runtimes.firecracker_config import FirecrackerConfig
from corral.sandboxes.runtimes.home import Home
from corral.sandboxes.sandbox import Sandbox
from corral.testing.escape_suite import EscapeSuite
from corral.testing.firecracker import FirecrackerAbsent, firecracker_programs
from corral.testing.machines import WithRoot, build_root, kits
from corral.testing.runtime_contract import (
    RuntimeContract,
    belongings,
    left_behind,
    new_spec,
    processes_with,
    shell,
    wait_until,
)
from corral.testing.snapshot_contract import SnapshotContract

pytestmark = [pytest.mark.slow]
PATIENCE_S = float(os.environ.get("CORRAL_TEST_PATIENCE_S", "5"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with Home(tmp_path_factory.mktemp("data") / "sandboxes") as home:
        yield home


@pytest.fixture(scope="module")
def config() -> FirecrackerConfig:
    try:
        programs = firecracker_programs()
    except FirecrackerAbsent as error:
        pytest.skip(str(error))
    return FirecrackerConfig(
        firecracker=str(programs / "firecracker"),
        jailer=str(programs / "jailer"),
        probe_within_s=PATIENCE_S,
        boot_within_s=2 * PATIENCE_S,
        snapshot_bytes_max=1 * GIB,
    )


@pytest.fixture(scope="module")
def firecracker(home: Home, config: FirecrackerConfig) -> Iterator[FirecrackerRuntime]:
    try:
        runtime = FirecrackerRuntime(home, config, kits=kits(), start_within_s=PATIENCE_S)
    except CorralError as error:
        pytest.skip(str(error))
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("CORRAL_TEST_ROOT")
    return given or str(build_root(tmp_path_factory.mktemp("image")))


@pytest.fixture(scope="module")
def runtime(firecracker: FirecrackerRuntime, root: str) -> Runtime:
    return WithRoot(firecracker, Path(root))


@pytest.fixture(scope="module")
def snapshotting(firecracker: FirecrackerRuntime) -> Snapshotting:
    return firecracker


class TestFirecracker(RuntimeContract):
    """Nothing to add."""


class TestFirecrackerSnapshots(SnapshotContract):
    """Nothing to add."""


class TestFirecrackerEscapes(EscapeSuite):
    """Nothing to add."""


async def test_firecracker_is_jailed(firecracker: FirecrackerRuntime, root: str) -> None:
    box = await firecracker.start(replace(new_spec(), root=root))
    assert isinstance(box, FirecrackerBox)
    try:
        facts = facts_of(box.pid)

        assert {int(uid) for uid in facts["Uid"].split()} == {int(gid) for gid in facts["Gid"].split()}
        assert int(facts["Uid"].split()[0]) >= 0x70000000
        assert int(facts["CapEff"], 16) == 0
        assert facts["NSpid"].split()[-1] == "1", "it is not process 1 of a namespace of its own"
        assert os.stat(f"/proc/{box.pid}/root").st_ino == box.jail.root.stat().st_ino
        assert os.readlink(f"/proc/{box.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        assert facts["Seccomp"] == "2"
    finally:
        await box.stop()
    assert not box.jail.folder.exists()
    assert not processes_with(box.jail.name)


async def test_a_machine_has_no_network_device_and_one_disk(firecracker: FirecrackerRuntime, root: str) -> None:
    sandbox = Sandbox(await firecracker.start(replace(new_spec(), root=root)))
    try:
        done = await shell(
            sandbox, "tail -n +3 /proc/net/dev | cut -d: -f1; cat /proc/partitions | tail -n +3; uname -r"
        )
    finally:
        await sandbox.stop()

    assert done.stdout.split()[0] == b"lo"
    assert done.stdout.count(b"vd") == 1


async def test_a_box_whose_monitor_is_killed_is_lost_and_leaves_nothing(
    firecracker: FirecrackerRuntime, root: str
) -> None:
    before = belongings()
    box = await firecracker.start(replace(new_spec(), root=root))
    assert isinstance(box, FirecrackerBox)
    sandbox = Sandbox(box)

    os.kill(box.pid, 9)

    await sandbox.wait_lost()
    await sandbox.stop()
    assert left_behind(before) == {}
    assert not box.jail.folder.exists()


async def test_what_a_killed_worker_left_is_swept(firecracker: FirecrackerRuntime, root: str, home: Home) -> None:
    box = await firecracker.start(replace(new_spec(), root=root))
    assert isinstance(box, FirecrackerBox)
    home._alive.discard(box.spec.id)  # as a worker that has just started sees it

    swept = await firecracker.sweep()

    assert swept == 1
    await wait_until(lambda: not Path(f"/proc/{box.pid}/root").exists() or not processes_with(box.jail.name))
    assert not box.jail.folder.exists()
    await box.stop()


async def test_a_guest_that_does_not_boot_fails_fast_with_its_own_words(
    firecracker: FirecrackerRuntime, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "image.json").touch()
    (tmp_path / "root.squashfs").write_bytes(b"no file system" * 1000)

    with pytest.raises(SandboxFailed, match="root image"):
        await firecracker.start(replace(new_spec(), root=str(tmp_path / "root")))


async def test_a_sandbox_without_an_image_is_refused(firecracker: FirecrackerRuntime) -> None:
    with pytest.raises(InvalidSpec, match="boots from an image"):
        await firecracker.start(new_spec())


def facts_of(pid: int) -> dict[str, str]:
    status = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
