"""Images as users meet them: a real registry, a real `corral up`, a real sandbox on a root that holds one program."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from corral.testing.processes import (
    CorralProcess,
    clean_environment,
    fixed_addresses,
    public_directory,
    wait_until,
    why_no_agent,
)

pytestmark = pytest.mark.timeout(180)
_ABSENT = why_no_agent() or why_no_registry()
_HELLO = r"""
#include <stdio.h>
#include <stdlib.h>
int main(void) { printf("hello from %s\n", getenv("FROM") ? getenv("FROM") : "nowhere"); return 7; }
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    if _ABSENT:
        pytest.skip(_ABSENT)
    with debian_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def up() -> Iterator[CorralProcess]:
    if _ABSENT:
        pytest.skip(_ABSENT)
    with public_directory() as home:  # its data directory is closed to the sandboxes' user all the same
        process = CorralProcess("up", home, *fixed_addresses())
        process.start()
        try:
            yield process
        finally:
            process.stop()


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A program that needs nothing: no shell, no libc."""
    folder = tmp_path_factory.mktemp("hello")
    (folder / "hello.c").write_text(_HELLO)
    command = ["musl-gcc", "-static", "-Os", "-s", "hello.c", "-o", "hello"]
    try:
        subprocess.run(command, cwd=folder, check=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("musl-gcc is not installed (Debian package musl-tools)")
    return (folder / "hello").read_bytes()


def corral(up: CorralProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corral", *arguments],
        env={**clean_environment(), "CORRAL_URL": up.url},
        cwd=up.home,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_an_image_of_one_static_program_is_pulled_prepared_and_run(
    up: CorralProcess, registry: DebianRegistry, hello: bytes
) -> None:
    layer = tar_of(directory("bin"), file("bin/hello", hello, mode=0o755))
    image = build(layer, architecture=this_platform().architecture, settings={"Env": ["FROM=the image", "PATH=/bin"]})
    reference = registry.push("demo", image)

    first = corral(up, "run", "--image", reference, "--", "/bin/hello")
    second = corral(up, "run", "--image", reference, "--", "hello")

    assert first.returncode == 7, first.stderr
    assert first.stdout.endswith("hello from the image\n")
    assert f"[corral] image {reference}: ready after" in first.stdout
    assert image.digest in first.stdout
    assert (second.returncode, second.stdout) == (7, "hello from the image\n")
    audit = json.loads(corral(up, "audit", "list", "--json").stdout)["rows"]
    assert {row["image"] for row in audit} == {image.digest}
    listed = corral(up, "image", "list", "--data-dir", str(up.data))
    assert image.digest[:19] in listed.stdout
    assert reference in listed.stdout
    wait_until(lambda: image.digest in corral(up, "worker", "list", "--json").stdout, "the worker's heartbeat")
    busy = corral(up, "image", "rm", image.digest[:20], "--data-dir", str(up.data))
    assert busy.returncode == 2
    assert "in use" in busy.stderr


def test_a_system_in_an_image_is_read_only_and_all_that_there_is(up: CorralProcess, registry: DebianRegistry) -> None:
    layers = (
        host_tree("sh", "cat", "ls", "id"),
        tar_of(directory("etc"), file("etc/motd", b"from the image\n"), directory("opt/tool"), file("tmp/stale", b"")),
    )
    reference = registry.push("system", build(*layers, architecture=this_platform().architecture))
    script = "cat /etc/motd; ls /etc /tmp /opt; id -u; echo x > /work/x && echo written; echo x > /etc/motd"

    done = corral(up, "run", "--image", reference, "--", "sh", "-c", script)

    lines = [line for line in done.stdout.splitlines() if not line.startswith("[corral]")]
    assert lines[0] == "from the image", done.stdout + done.stderr
    assert {"motd", "tool", "1000", "written"} <= set(lines)
    assert "stale" not in lines
    assert "Read-only file system" in done.stdout


def test_what_cannot_be_had_is_explained_to_the_user(up: CorralProcess, registry: DebianRegistry) -> None:
    absent = corral(up, "run", "--image", f"{registry.address}/absent:1", "--", "/x")
    elsewhere = corral(up, "run", "--image", "registry.example/a:1", "--", "/x")
    wrong = corral(up, "run", "--image", "Not/A Reference", "--", "/x")

    assert f"{registry.address}/absent:1: the registry {registry.address} has no such image" in absent.stderr
    assert "malformed-payload" in absent.stderr
    assert "takes no images from registry.example" in elsewhere.stderr
    assert wrong.returncode == 2
    assert "has no right name" in wrong.stderr


def test_the_command_line_pulls_shows_and_removes(
    up: CorralProcess, registry: DebianRegistry, hello: bytes, tmp_path: Path
) -> None:
    image = build(tar_of(file("hello", hello, mode=0o755)), architecture=this_platform().architecture)
    reference = registry.push("cli", image)
    here = ("--data-dir", str(tmp_path / "data"))

    pulled = corral(up, "image", "pull", reference, "--pin", *here)
    shown = json.loads(corral(up, "image", "show", reference, "--json", *here).stdout)
    prepared = corral(up, "image", "prepare", reference, *here)
    removed = corral(up, "image", "rm", image.digest[:20], *here)
    again = corral(up, "image", "rm", image.digest, *here)
    absent = corral(up, "image", "pull", f"{registry.address}/absent:1", *here)

    assert (pulled.returncode, pulled.stdout) == (0, f"{image.digest}\n"), pulled.stderr
    assert "unpacking, layer 1 of 1" in pulled.stderr
    assert (shown["digest"], shown["pinned"], shown["references"]) == (image.digest, True, [reference])
    assert prepared.stdout == f"{image.digest}\n"
    assert removed.returncode == 0, removed.stderr
    assert again.returncode == 2
    assert "is not prepared on this machine" in again.stderr
    assert (absent.returncode, "no such image" in absent.stderr) == (2, True)
    for done in (pulled, again, absent):
        assert "Traceback" not in done.stderr


def test_an_operators_image_is_named_by_its_digest_alone(
    up: CorralProcess, registry: DebianRegistry, hello: bytes
) -> None:
    image = build(tar_of(file("only", hello, mode=0o755)), architecture=this_platform().architecture)
    pulled = corral(up, "image", "pull", registry.push("shared", image), "--data-dir", str(up.data))
    assert pulled.returncode == 0, pulled.stderr

    done = corral(up, "run", "--image", image.digest, "--", "/only")

    assert (done.returncode, done.stdout) == (7, "hello from nowhere\n")
