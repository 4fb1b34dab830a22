"""Boxes of the oci and gvisor runtimes through the accidents of a worker's life, and who they are on the host."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.kernel.errors import InvalidSpec, SandboxFailed
from corral.sandboxes.runtimes.oci import OciConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.sandboxes.sandbox import Sandbox
from corral.testing.runtime_contract import belongings, new_spec, processes_with, shell, wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else on the host")
KINDS = {
    "crun": RuntimesConfig(names=("oci",), oci=OciConfig(program="crun")),
    "runc": RuntimesConfig(names=("oci",), oci=OciConfig(program="runc")),
    "runsc": RuntimesConfig(names=("gvisor",)),
}


@pytest.fixture(params=["crun", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("runc", "runsc"))])
def kind(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"apt-get install {request.param}")
    return str(request.param)


def host_owners(sandbox_id: str) -> set[int]:
    """Who runs the processes that know the sandbox's id."""
    return {os.stat(f"/proc/{pid}").st_uid for pid in processes_with(sandbox_id)}


@as_root
async def test_each_tenant_is_somebody_else_on_the_host_and_the_same_inside(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind]
    with open_runtimes(config, tmp_path) as runtimes:
        specs = [new_spec(tenant=tenant) for tenant in ("ann", "bob", "ann")]
        sandboxes = [Sandbox(await runtimes[config.names[0]].start(spec)) for spec in specs]
        inside = {(await shell(sandbox, "id -u; id -g")).stdout for sandbox in sandboxes}
        ann, bob, ann_again = (host_owners(spec.id) for spec in specs)
        for sandbox in sandboxes:
            await sandbox.stop()

    assert inside == {b"1000\n1000\n"}
    assert ann == ann_again
    assert not ann & bob
    assert min(ann | bob) >= config.tenant_uid_first


async def test_a_worker_s_private_directory_does_not_stop_a_box(tmp_path: Path, kind: str) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    config = KINDS[kind]

    with open_runtimes(config, private / "sandboxes") as runtimes:
        sandbox = Sandbox(await runtimes[config.names[0]].start(new_spec()))
        done = await shell(sandbox, "echo fine")
        await sandbox.stop()

    assert done.stdout == b"fine\n"
    assert not belongings()["temporary files"]


CRASHING_WORKER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from corral.sandboxes.runtimes.oci import OciConfig
    from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
    from corral.sandboxes.sandbox import Sandbox
    from corral.testing.runtime_contract import new_spec, shell

    async def main() -> None:
        name, program = sys.argv[2:]
        config = RuntimesConfig(names=(name,), oci=OciConfig(program=program))
        with open_runtimes(config, Path(sys.argv[1])) as runtimes:
            for _ in range(3):
                sandbox = Sandbox(await runtimes[name].start(new_spec()))
                await sandbox.run("/bin/true")
                asyncio.get_running_loop().create_task(shell(sandbox, "trap '' TERM; sleep 600"))
            await asyncio.sleep(0.1)
            print("up", flush=True)
            await asyncio.sleep(60)

    asyncio.run(main())
""")


async def test_a_killed_worker_s_boxes_die_and_the_next_one_sweeps_what_is_left(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind]
    home, program = tmp_path / "sandboxes", "" if kind == "runsc" else kind
    argv = [sys.executable, "-c", CRASHING_WORKER, str(home), config.names[0], program]
    worker = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    boxes = f"sbx_contract{worker.pid}x"
    try:
        assert worker.stdout is not None
        async with asyncio.timeout(60):
            up = b""
            while not up.endswith(b"up\n"):
                line = await worker.stdout.readline()
                assert line, up
                up += line
        running = len(processes_with(boxes))
    finally:
        worker.send_signal(signal.SIGKILL)
        await worker.wait()

    assert running >= 3
    await wait_until(lambda: not processes_with(boxes), within_s=20)
    with open_runtimes(config, home) as runtimes:
        swept = await runtimes[config.names[0]].sweep()
        again = await runtimes[config.names[0]].sweep()
        left = [path.name for path in home.rglob("sbx_*")]

    assert (swept, again, left) == (3, 0, [])


async def test_what_gvisor_cannot_give_is_refused(tmp_path: Path) -> None:
    try:
        with open_runtimes(KINDS["runsc"], tmp_path) as runtimes:
            spec = new_spec()
            with pytest.raises(InvalidSpec, match="no network"):
                await runtimes["gvisor"].start(type(spec)(id=spec.id, tenant="ann", network=True))
    except SandboxFailed as error:
        pytest.skip(f"{error}: {error.cure}")


UNPRIVILEGED_WORKER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
    from corral.sandboxes.sandbox import Sandbox
    from corral.testing.runtime_contract import new_spec, shell

    async def main() -> None:
        with open_runtimes(RuntimesConfig(names=(sys.argv[2],)), Path(sys.argv[1])) as runtimes:
            sandbox = Sandbox(await runtimes[sys.argv[2]].start(new_spec()))
            done = await shell(sandbox, "id -u; grep CapBnd /proc/self/status; : > x && echo wrote")
            await sandbox.stop()
            print(done.stdout.decode(), end="")

    asyncio.run(main())
""")


@as_root
@pytest.mark.parametrize(("name", "program"), [("oci", "crun"), ("gvisor", "runsc")])
def test_a_worker_without_any_right_starts_the_same_boxes(public_path: Path, name: str, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"apt-get install {program}")
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    if subprocess.run([*as_nobody, "-c", "import corral"], capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("Corral is installed where nobody but root can read it")
    shutil.chown(public_path, 65534, 65534)

    done = subprocess.run(
        [*as_nobody, "-c", UNPRIVILEGED_WORKER, str(public_path / "home"), name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )

    assert done.stdout.splitlines()[-3:] == ["1000", f"CapBnd:\t{'0' * 16}", "wrote"], done.stderr


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that everybody on this host can reach; pytest's own are private."""
    path = Path(tempfile.mkdtemp(prefix=f"corral-test-{os.getpid()}-"))
    yield path
    shutil.rmtree(path)
