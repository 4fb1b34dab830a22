"""Compiles in an image: with the image's compiler and headers, whatever this machine has of its own."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from corral.testing.compiles import Compiles, aged, compile_fleet, compiles
from corral.testing.images import (
    DebianRegistry,
    build,
    debian_registry,
    directory,
    file,
    host_tree,
    tar_of,
    this_platform,
    why_no_registry,
)
from corral.testing.processes import CorralProcess, why_no_agent

_ABSENT = why_no_agent() or why_no_registry() or ("" if shutil.which("gcc") else "gcc is not installed")
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(_ABSENT), reason=_ABSENT or "all is there"),
]
LINE = ("gcc", "-O1", "-MMD", "-c", "a.c", "-o", "a.o")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    with debian_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def fleet() -> Iterator[CorralProcess]:
    with compile_fleet() as up:
        yield up


@pytest.fixture(scope="module")
def tool_chain() -> bytes:
    """gcc with all that it runs, and no header at all."""
    parts = [
        subprocess.run(["gcc", f"-print-prog-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("cc1", "as")
    ]
    return host_tree("gcc", *parts)


def push(registry: DebianRegistry, tool_chain: bytes, edom: int) -> str:
    """An image whose ``errno.h`` is its own."""
    headers = tar_of(directory("usr/include"), file("usr/include/errno.h", b"#define EDOM %d\n" % edom))
    image = build(tool_chain, headers, how="zstd", architecture=this_platform().architecture)
    return f"{registry.push('tool-chain', image)}@{image.digest}"


def make_project(place: Path) -> Path:
    place.mkdir()
    (place / ".corral").touch()
    (place / "x.h").write_text("#define X 1\n")
    (place / "a.c").write_text('#include <errno.h>\n#include "x.h"\nint f(void) { return EDOM * X; }\n')
    aged(*place.iterdir())
    return place


def compiled(running: Compiles, project: Path) -> tuple[int, bytes]:
    """What the wrapper says, and the number that the object returns."""
    (project / "a.o").unlink(missing_ok=True)
    done = running.run(*LINE, cwd=project)
    assert done.returncode == 0, done.stderr
    running.events()
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "a.o"], cwd=project, capture_output=True, text=True, check=True
    ).stdout
    (line,) = [line for line in code.splitlines() if "mov" in line]
    return int(line.partition("$")[2].partition(",")[0], 16), done.stderr


def test_the_image_is_the_tool_chain_and_its_digest_is_what_results_are_kept_under(
    fleet: CorralProcess, registry: DebianRegistry, tool_chain: bytes, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    one, two = (push(registry, tool_chain, number) for number in (1111, 2222))
    remote = {"CORRAL_COMPILE__REMOTE__SCHEDULER": fleet.url, "CORRAL_COMPILE__REMOTE__PARANOID": "true"}

    with compiles({**remote, "CORRAL_COMPILE__REMOTE__IMAGE": one}) as running:
        made = [compiled(running, project)[0] for _ in range(2)]
        rules = (project / "a.d").read_text()
        running.environment["CORRAL_COMPILE__REMOTE__IMAGE"] = two
        running.stop()
        made.append(compiled(running, project)[0])
        running.environment["CORRAL_COMPILE__REMOTE__SCHEDULER"] = "http://127.0.0.1:9"
        running.stop()
        running.environment.pop("CORRAL_COMPILE__REMOTE__IMAGE")
        made.append(compiled(running, project)[0])
        outcomes = running.outcomes()

    assert made == [1111, 1111, 2222, 33]
    assert outcomes == ["remote-run", "local-hit", "remote-run", "local-run"]
    assert rules.split() == ["a.o:", "a.c", "x.h"]
    rows = httpx.get(f"{fleet.url}/api/v1/audit", timeout=30).json()["rows"]
    assert {row["image"] for row in rows} == {each.partition("@")[2] for each in (one, two)}


def test_what_the_compiler_of_the_image_refuses_is_compiled_here(
    fleet: CorralProcess, registry: DebianRegistry, tool_chain: bytes, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    (project / "a.c").write_text("#include <stdio.h>\nint f(void) { return 44; }\n")
    aged(project / "a.c")
    remote = {
        "CORRAL_COMPILE__REMOTE__SCHEDULER": fleet.url,
        "CORRAL_COMPILE__REMOTE__IMAGE": push(registry, tool_chain, 1),
        "LC_ALL": "C",
    }

    with compiles(remote) as running:
        made, said = compiled(running, project)
        outcomes = running.outcomes()

    assert (made, outcomes) == (44, ["local-run"])
    assert said.startswith(
        b"corral: not compiled by the fleet (the compiler there says no: a.c:1:10: fatal error: stdio.h"
    )
