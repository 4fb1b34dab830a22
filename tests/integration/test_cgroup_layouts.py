"""Control groups on this machine's real trees, and the version 2 files that this machine may not have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from corral.sandboxes.cgroups import CgroupLayout, Cgroups
from corral.sandboxes.model import MIB, Size


def spawn(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.PIPE)


@pytest.fixture
def groups(request: pytest.FixtureRequest) -> Cgroups:
    found = Cgroups.open(f"test-{abs(hash(request.node.nodeid)):x}"[:20])
    if found.layout is CgroupLayout.NONE:
        pytest.skip(f"no control groups can be made here: {found.why}")
    request.addfinalizer(found.close)
    return found


async def test_memory_beyond_the_limit_is_killed_and_counted(groups: Cgroups) -> None:
    group = groups.create("hog", Size(memory_bytes=64 * MIB))
    assert group is not None
    hog = spawn(sys.executable, "-c", "input(); bytearray(512 << 20)")
    group.add(hog.pid)

    hog.communicate(b"\n")

    assert hog.returncode == -9
    assert group.counters().out_of_memory == 1
    assert group.counters().memory_peak_bytes <= 64 * MIB
    await group.remove()


async def test_processes_beyond_the_limit_are_refused_and_counted(groups: Cgroups) -> None:
    group = groups.create("forks", Size(processes=8))
    assert group is not None
    script = "import os\ninput()\ntry:\n  [os.fork() or os.read(0, 1) for _ in range(40)]\nexcept OSError: os._exit(3)"
    forks = spawn(sys.executable, "-c", script)
    group.add(forks.pid)
    assert forks.stdin is not None

    forks.stdin.write(b"\n")
    forks.stdin.flush()

    assert forks.wait(10) in (0, 3)
    group.kill()
    forks.stdin.close()
    await group.remove()


async def test_killing_a_group_reaches_everything_in_it(groups: Cgroups) -> None:
    group = groups.create("tree", Size())
    assert group is not None
    tree = spawn("/bin/sh", "-c", "read x; trap '' TERM; setsid sleep 600 & sleep 600")
    group.add(tree.pid)
    assert tree.stdin is not None
    tree.stdin.write(b"\n")
    tree.stdin.flush()

    group.kill()

    assert tree.wait(10) == -9
    tree.stdin.close()
    await group.remove()
    assert groups.leftovers() == ()


async def test_a_predecessor_s_groups_are_found_again(groups: Cgroups) -> None:
    left = groups.create("left", Size())
    assert left is not None

    (found,) = groups.leftovers()

    assert found.name == "left"
    assert found.join_files == left.join_files
    await found.remove()
    await left.remove()  # idempotent


async def test_version_2_limits_are_written_as_the_kernel_documents(tmp_path: Path) -> None:
    parent = tmp_path / "corral-x"
    box = parent / "box"
    groups = Cgroups(parents=dict.fromkeys(("memory", "pids", "cpu"), parent), layout=CgroupLayout.V2, why="")
    parent.mkdir()
    files = ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cgroup.kill", "cgroup.procs")
    make = os.mkdir

    def kernel_mkdir(path: str) -> None:  # the kernel fills a new group with its files
        make(path)
        for file in files:
            Path(path, file).write_text("")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corral.sandboxes.cgroups.os.mkdir", kernel_mkdir)
        group = groups.create("box", Size(memory_bytes=64 * MIB, processes=10, cpus=1.5))
    assert group is not None
    (box / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (box / "pids.events").write_text("max 5\n")

    assert (box / "memory.max").read_text() == str(64 * MIB)
    assert (box / "memory.swap.max").read_text() == "0"
    assert (box / "pids.max").read_text() == "14"
    assert (box / "cpu.max").read_text() == "150000 100000"
    assert (group.counters().out_of_memory, group.counters().process_limit) == (2, 5)
    assert group.join_files == (f"{box}/cgroup.procs",)
    group.kill()
    assert (box / "cgroup.kill").read_text() == "1"


def test_a_machine_without_control_groups_says_why(tmp_path: Path) -> None:
    groups = Cgroups.open("none", mount=tmp_path)

    assert groups.layout is CgroupLayout.NONE
    assert groups.hard == frozenset()
    assert "not mounted" in groups.why
    assert groups.create("box", Size()) is None
