"""Boxes through the accidents of a worker's life: private directories, sweeping after a crash, many short lives."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from corral.kernel.errors import Conflict, InvalidSpec, SandboxFailed
from corral.sandboxes.cgroups import CgroupLayout, Cgroups
from corral.sandboxes.runtimes.child import Child, launcher_path, run_to_end
from corral.sandboxes.runtimes.registry import RuntimesConfig, check_name, open_runtimes
from corral.sandboxes.sandbox import Sandbox
from corral.testing.runtime_contract import SMALL, belongings, left_behind, new_spec, processes_with, shell, wait_until

NO_GROUPS = Cgroups(parents={}, layout=CgroupLayout.NONE, why="this test wants none")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can map another user")
async def test_a_tool_beside_a_box_that_fails_or_does_not_end_in_time_is_told() -> None:
    first = RuntimesConfig().tenant_uid_first
    namespaces = ["-n", f"{first}:65534"]
    box = Child.spawn([str(launcher_path()), *namespaces, "--", "/bin/sleep", "1000"], descriptors=(0, 1, 2))
    try:
        await wait_until(lambda: Path(f"/proc/{box.pid}/comm").read_text() == "sleep\n")

        await run_to_end(["/bin/true"], beside=box.pid, within_s=30)
        with pytest.raises(SandboxFailed, match="false failed: status 1"):
            await run_to_end(["/bin/false"], beside=box.pid, within_s=30)
        with pytest.raises(SandboxFailed, match=r"sleep failed: no end within 0\.1 s"):
            await run_to_end(["/bin/sleep", "1000"], beside=box.pid, within_s=0.1)
    finally:
        box.kill()
        await box.wait_ended(within_s=30)


async def test_a_worker_s_private_directory_does_not_stop_an_unprivileged_box(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)

    with open_runtimes(RuntimesConfig(), private / "sandboxes") as runtimes:
        sandbox = Sandbox(await runtimes["bubblewrap"].start(new_spec()))
        done = await shell(sandbox, "id -u")
        await sandbox.stop()

    assert done.stdout == b"1000\n"
    assert not belongings()["temporary files"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else on the host")
async def test_a_box_of_root_is_nobody_on_the_host(tmp_path: Path) -> None:
    with open_runtimes(RuntimesConfig(), tmp_path) as runtimes:
        sandbox = Sandbox(await runtimes["bubblewrap"].start(new_spec()))
        async with asyncio.TaskGroup() as group:
            name = f"901.{os.getpid()}"
            running = group.create_task(shell(sandbox, f"sleep {name}"))
            await wait_until(lambda: len(processes_with(name)) >= 2)
            owners = {os.stat(f"/proc/{pid}").st_uid for pid in processes_with(f"sleep\0{name}")}
            running.cancel()
        await sandbox.stop()

    assert owners == {65534}


async def test_without_control_groups_rlimits_hold_and_nothing_is_left(tmp_path: Path) -> None:
    with open_runtimes(RuntimesConfig(), tmp_path, cgroups=NO_GROUPS) as runtimes:
        runtime = runtimes["bubblewrap"]
        sandbox = Sandbox(await runtime.start(new_spec()))
        assert len(list((tmp_path / "boxes").iterdir())) == 1

        limits = await shell(sandbox, "ulimit -d; ulimit -u 2>/dev/null || ulimit -p; ulimit -n; ulimit -c")
        await sandbox.stop()

        assert limits.stdout.split()[0] == str(SMALL.memory_bytes // 1024).encode()
        assert limits.stdout.split()[-2:] == [str(SMALL.open_files).encode(), b"0"]
        assert not runtime.capabilities.memory_limit
        assert list((tmp_path / "boxes").iterdir()) == []


CRASHING_WORKER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
    from corral.sandboxes.sandbox import Sandbox
    from corral.testing.runtime_contract import new_spec, shell

    async def main() -> None:
        with open_runtimes(RuntimesConfig(names=tuple(sys.argv[2:3])), Path(sys.argv[1])) as runtimes:
            runtime = runtimes[sys.argv[2]]
            for _ in range(3):
                sandbox = Sandbox(await runtime.start(new_spec()))
                asyncio.get_running_loop().create_task(shell(sandbox, f"trap '' TERM; sleep {sys.argv[3]}"))
            await asyncio.sleep(60)

    asyncio.run(main())
""")


def spawn(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", ["bubblewrap", "really_really_dangerous"])
async def test_a_killed_worker_s_boxes_die_and_the_next_one_sweeps_what_is_left(tmp_path: Path, name: str) -> None:
    mark = f"902.{os.getpid()}"
    home = tmp_path / "sandboxes"
    worker = spawn([sys.executable, "-c", CRASHING_WORKER, str(home), name, mark])
    try:
        await wait_until(lambda: len(processes_with(f"sleep\0{mark}")) == 3, within_s=30)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()

    await wait_until(lambda: not processes_with(f"sleep\0{mark}"))
    with open_runtimes(RuntimesConfig(names=(name,)), home) as runtimes:
        swept = await runtimes[name].sweep()
        again = await runtimes[name].sweep()

    assert (swept, again) == (3, 0)


async def test_two_workers_cannot_share_a_directory(tmp_path: Path) -> None:
    with open_runtimes(RuntimesConfig(), tmp_path), pytest.raises(Conflict, match="another process"):
        with open_runtimes(RuntimesConfig(), tmp_path):
            pass


def copy_program(program: str, root: Path) -> None:
    """A dynamically linked program of the host with the libraries that it needs."""
    libraries = re.findall(r"(/\S+) \(0x", subprocess.check_output(["ldd", program], text=True))
    for file in (program, *libraries):
        target = root / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that everybody on this host can reach; pytest's own are private."""
    path = Path(tempfile.mkdtemp(prefix=f"corral-test-{os.getpid()}-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


async def test_a_given_root_is_used_and_nothing_else(tmp_path: Path, public_path: Path) -> None:
    root = public_path / "root"
    for folder in ("etc", "tmp", "proc"):
        (root / folder).mkdir(parents=True)
    (root / "etc" / "whose").write_text("the image's\n")
    (root / "tmp" / "secret").write_text("not taken over\n")
    for program in ("/bin/sh", "/bin/cat", "/bin/ls"):
        copy_program(program, root)
    spec = replace(new_spec(), root=str(root))

    with open_runtimes(RuntimesConfig(), tmp_path / "home") as runtimes:
        sandbox = Sandbox(await runtimes["bubblewrap"].start(spec))
        done = await shell(sandbox, "cat /etc/whose; ls / /tmp /etc; : > /x")
        await sandbox.stop()

    assert b"the image's" in done.stdout
    assert b"usr" not in done.stdout
    assert b"passwd" not in done.stdout
    assert b"secret" not in done.stdout
    assert b"Read-only" in done.stderr


async def test_a_command_that_is_no_agent_fails_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\necho 'I am no agent' >&2\nexit 3\n")
    agent.chmod(0o755)
    monkeypatch.setenv("CORRAL_AGENT", str(agent))

    with open_runtimes(RuntimesConfig(), tmp_path / "home") as runtimes:
        with pytest.raises(SandboxFailed, match=r"I am no agent|No such file|Permission denied"):
            await runtimes["bubblewrap"].start(new_spec())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bubblewarp", 'did you mean "bubblewrap"'),
        ("runhcs-wcow-hypervisor", "Windows"),
        ("really-really-dangerous", "there is no runtime"),
        ("host", "known are"),
    ],
)
def test_a_name_that_cannot_be_opened_is_answered_with_one_clear_sentence(name: str, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        check_name(name)


@pytest.mark.parametrize("lives", [100, pytest.param(1000, marks=pytest.mark.slow)])
async def test_many_short_lives_leave_nothing(tmp_path: Path, lives: int) -> None:
    with open_runtimes(RuntimesConfig(), tmp_path / "sandboxes") as runtimes:
        runtime = runtimes["bubblewrap"]
        await Sandbox(await runtime.start(new_spec())).stop()
        before = belongings()
        slots = asyncio.Semaphore(8)

        async def live() -> None:
            async with slots:
                sandbox = Sandbox(await runtime.start(new_spec()))
                await sandbox.stop()

        async with asyncio.TaskGroup() as group:
            for _ in range(lives):
                group.create_task(live())

        assert left_behind(before) == {}
        assert list((tmp_path / "sandboxes" / "boxes").iterdir()) == []
        assert list((tmp_path / "sandboxes" / "work").iterdir()) == []
