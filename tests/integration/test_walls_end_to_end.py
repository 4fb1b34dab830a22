"""Every wall as users meet it: an image made of Debian's packages, in a real registry; a real `corral up`; zlib, built
and tested by the same command behind each of them, with the same output."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.debian import DebianAbsent, source, tools_image
from corral.testing.images import debian_registry, why_no_registry
from corral.testing.machines import kits, why_no_machines
from corral.testing.processes import (
    CorralProcess,
    clean_environment,
    fixed_addresses,
    public_directory,
    why_no_agent,
)

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
BUILD = "./configure --static >/dev/null && make -s libz.a example && ./example && id -u"
WALLS = {"oci": ("crun", "runc"), "gvisor": ("runsc",), "qemu": ()}


def why_not(wall: str) -> str:
    """Why it cannot be had here; "" when it can."""
    if wall == "qemu":
        return why_no_machines()
    return "" if any(map(shutil.which, WALLS[wall])) else f"none of {', '.join(WALLS[wall])} is installed"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if why := why_no_agent() or why_no_registry():
        pytest.skip(why)
    with debian_registry(tmp_path_factory.mktemp("registry")) as running:
        try:
            yield running.push("tools", tools_image())
        except DebianAbsent as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def zlib() -> Path:
    try:
        return source("zlib")
    except DebianAbsent as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def up(reference: str) -> Iterator[CorralProcess]:
    offered = [wall for wall in WALLS if not why_not(wall)]
    settings = [f"runtimes.names={','.join(('bubblewrap', *offered))}", "runtimes.start_within_s=60"]
    if "qemu" in offered:
        settings.append(f"runtimes.kits={kits()}")
    with public_directory() as home:
        process = CorralProcess("up", home, *fixed_addresses(), *settings)
        process.start()
        try:
            yield process
        finally:
            process.stop()


def corral(up: CorralProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corral", *arguments],
        env={**clean_environment(), "CORRAL_URL": up.url},
        cwd=up.home,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("[corral]")]


@pytest.fixture(scope="module")
def expected(up: CorralProcess, reference: str, zlib: Path) -> list[str]:
    """What the command says behind the default wall."""
    lines = said(corral(up, *built(reference, zlib, "bubblewrap")))
    assert lines[-3:] == ["after inflateSync(): hello, hello!", "inflate with dictionary: hello, hello!", "1000"]
    return lines


def built(reference: str, zlib: Path, wall: str) -> tuple[str, ...]:
    return (
        *("run", "--runtime", wall, "--image", reference, "--input", f"{zlib}:zlib"),
        *("--", "sh", "-c", f"cd zlib && {BUILD}"),
    )


@pytest.mark.parametrize("wall", WALLS)
def test_a_c_project_is_built_and_tested_behind_every_wall_with_the_same_words(
    up: CorralProcess, reference: str, zlib: Path, expected: list[str], wall: str
) -> None:
    if why := why_not(wall):
        pytest.skip(why)

    lines = said(corral(up, *built(reference, zlib, wall)))

    assert lines == expected


@pytest.mark.parametrize("wall", ["gvisor", "qemu"])
def test_behind_these_walls_is_another_kernel_with_the_clock_zone_and_locale_that_were_asked_for(
    up: CorralProcess, reference: str, wall: str
) -> None:
    if why := why_not(wall):
        pytest.skip(why)
    asked = ("--env", "TZ=CORRAL-3", "--env", "LANG=de_DE.UTF-8")
    script = "uname -r; date +%Z; echo $LANG; date -u +%Y-%m-%d; hostname"
    here = ("--image", reference, *asked, "--", "sh", "-c", script)

    container = said(corral(up, "run", "--runtime", "bubblewrap", *here))
    machine = said(corral(up, "run", "--runtime", wall, *here))

    assert machine[0] != container[0]
    assert machine[1:3] == container[1:3] == ["CORRAL", "de_DE.UTF-8"]
    assert machine[3] >= container[3]
    assert machine[4].startswith("sbx-")


def test_a_machine_without_an_image_is_refused_with_what_to_do(up: CorralProcess) -> None:
    if why := why_not("qemu"):
        pytest.skip(why)

    done = corral(up, "run", "--runtime", "qemu", "--", "true")

    assert done.returncode != 0
    assert "boots from an image, and none is named" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_root_image_goes_with_its_image(up: CorralProcess, reference: str) -> None:
    if why := why_not("qemu"):
        pytest.skip(why)
    said(corral(up, "run", "--runtime", "qemu", "--image", reference, "--", "true"))

    held = list((up.data / "images").glob("sha256-*/root.squashfs"))

    assert len(held) == 1
