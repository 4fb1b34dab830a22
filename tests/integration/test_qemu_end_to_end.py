"""Virtual machines as users meet them: an image from a real registry, a real `corral up`, a C project built in it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.images import (
    build,
    debian_registry,
    directory,
    file,
    symlink,
    tar_of,
    this_platform,
    why_no_registry,
)
from corral.testing.machines import kits, why_no_machines
from corral.testing.processes import (
    CorralProcess,
    clean_environment,
    fixed_addresses,
    public_directory,
    why_no_agent,
)

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
_PROGRAMS = ("sh", "make", "gcc", "as", "ld", "uname", "cat", "rm", "id")
_PROJECT = {
    "greet.h": "const char *greet(void);\n",
    "greet.c": '#include "greet.h"\nconst char *greet(void) { return "built and run"; }\n',
    "main.c": '#include <stdio.h>\n#include "greet.h"\nint main(void) { puts(greet()); return 0; }\n',
    "Makefile": "hello: main.o greet.o\n\tgcc -o $@ $^\n%.o: %.c greet.h\n\tgcc -O1 -c -o $@ $<\n",
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of this machine's own C compiler, in a registry."""
    if why := why_no_agent() or why_no_registry() or why_no_machines():
        pytest.skip(why)
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} missing on this machine, so no image of them can be made")
    with debian_registry(tmp_path_factory.mktemp("registry")) as running:
        layer = _toolchain(tmp_path_factory.mktemp("toolchain"))
        image = build(layer, architecture=this_platform().architecture, settings={"Env": ["PATH=/usr/bin:/bin"]})
        yield running.push("toolchain", image)


@pytest.fixture(scope="module")
def up(reference: str) -> Iterator[CorralProcess]:
    settings = ("runtimes.names=bubblewrap,qemu", f"runtimes.kits={kits()}", "runtimes.start_within_s=60")
    with public_directory() as home:
        process = CorralProcess("up", home, *fixed_addresses(), *settings)
        process.start()
        try:
            yield process
        finally:
            process.stop()


def _toolchain(folder: Path) -> bytes:
    """This machine's compiler with what it reads for the project: found by compiling it here."""
    for name, content in _PROJECT.items():
        (folder / name).write_text(content)
    own = Path(_said("gcc", "-print-libgcc-file-name").strip()).parent
    programs = [*(shutil.which(name) or "" for name in _PROGRAMS), str(own / "cc1"), str(own / "collect2")]
    wanted = {*programs, str(own / "liblto_plugin.so")}
    for program in programs:
        wanted |= set(re.findall(r"(/\S+) \(0x", _said("ldd", program)))
    wanted |= set(re.findall(r"(/\S+\.h)", _said("gcc", "-O1", "-M", str(folder / "main.c"))))
    wanted |= {path for path in _traced_link(folder).split() if not path.startswith(str(folder))}
    members = {_below_usr(path): Path(path).read_bytes() for path in wanted if Path(path).is_file()}
    tops = [symlink(top, f"usr/{top}") for top in ("bin", "lib", "lib64")]
    return tar_of(directory("usr"), *tops, *(file(name, data, mode=0o755) for name, data in sorted(members.items())))


def _below_usr(path: str) -> str:
    place = Path(path).parent.resolve() / Path(path).name
    return str(place if place.parts[1] == "usr" else Path("/usr", *place.parts[1:])).lstrip("/")


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout


def _traced_link(folder: Path) -> str:
    sources = [str(folder / name) for name in ("main.c", "greet.c")]
    return _said("gcc", "-Wl,--trace", "-o", str(folder / "out"), *sources)


def corral(up: CorralProcess, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corral", *arguments],
        env={**clean_environment(), "CORRAL_URL": up.url},
        cwd=cwd or up.home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if not line.startswith("[corral]")]


def test_a_c_project_is_built_in_a_machine_as_in_a_container(up: CorralProcess, reference: str, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    for name, content in _PROJECT.items():
        (tmp_path / "project" / name).write_text(content)
    script = "make && ./hello && id -u && uname -r"
    command = ("--image", reference, "--input", "project", "--", "sh", "-c", script)

    container = corral(up, "run", "--runtime", "bubblewrap", *command, cwd=tmp_path)
    machine = corral(up, "run", "--runtime", "qemu", *command, cwd=tmp_path)

    assert (container.returncode, machine.returncode) == (0, 0), container.stderr + machine.stdout + machine.stderr
    assert said(machine)[:-1] == said(container)[:-1]
    assert said(machine)[-3:-1] == ["built and run", "1000"]
    assert said(machine)[-1] != said(container)[-1]  # another kernel


def test_a_machine_without_an_image_is_refused_with_what_to_do(up: CorralProcess) -> None:
    done = corral(up, "run", "--runtime", "qemu", "--", "true")

    assert done.returncode != 0
    assert "boots from an image, and none is named" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_root_image_goes_with_its_image(up: CorralProcess, reference: str) -> None:
    held = list((up.data / "images").glob("sha256-*/root.squashfs"))

    assert len(held) == 1
