"""`corral up` with strong walls: the same command line, in a container and on gVisor's kernel."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.processes import CorralProcess, clean_environment, why_no_agent

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]
NEEDED = {"oci": ("crun", "runc"), "gvisor": ("runsc",)}
INSTALLED = [name for name, programs in NEEDED.items() if any(map(shutil.which, programs))]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if why_no_agent():
        pytest.skip(why_no_agent())
    names = ",".join(("bubblewrap", *INSTALLED))
    settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", f"runtimes.names={names}")
    running = CorralProcess("up", tmp_path_factory.mktemp("up"), *settings)
    running.start()
    try:
        yield running.url
    finally:
        running.stop()


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corral", "run", *arguments],
        env={**clean_environment(), "CORRAL_URL": url},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize("name", NEEDED)
def test_a_task_runs_behind_the_wall_that_it_asks_for(url: str, name: str) -> None:
    if name not in INSTALLED:
        pytest.skip(f"none of {', '.join(NEEDED[name])} is installed")

    done = run(url, "--runtime", name, "--", "sh", "-c", "uname -r; cat /proc/self/uid_map; exit 7")

    assert done.returncode == 7, done.stderr
    release = done.stdout.splitlines()[0]
    assert (release == "4.4.0") == (name == "gvisor"), done.stdout
    assert "Traceback" not in done.stderr


def test_a_wall_that_no_worker_has_is_refused_with_what_is_offered(url: str) -> None:
    done = run(url, "--runtime", "runhcs-wcow-hypervisor", "--", "true")

    assert done.returncode == 2
    assert 'runtime: "runhcs-wcow-hypervisor"' in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["runtimes.names=runhcs-wcow-hypervisor"], "it needs Windows with Hyper-V"),
        (["runtimes.names=firecracker", "runtimes.firecracker.firecracker=/no/firecracker"], "is not installed"),
        (["runtimes.names=firecracker", "runtimes.firecracker.boot_args=root=/dev/sda"], "boot_args must not hold"),
        (["runtimes.names=qemu", "runtimes.qemu.accelerator=hvf"], "accelerator must be one of"),
        (["runtimes.names=oci", "runtimes.oci.program=/no/crun"], "is not installed"),
    ],
)
def test_a_wall_that_cannot_be_given_is_refused_at_the_start_in_one_sentence(
    tmp_path: Path, settings: list[str], words: str
) -> None:
    if why_no_agent():
        pytest.skip(why_no_agent())
    here = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=off", *settings)
    options = [word for setting in here for word in ("--set", setting)]

    done = subprocess.run(
        [sys.executable, "-m", "corral", "up", "--data-dir", str(tmp_path / "data"), *options],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert sum(words in line for line in done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
