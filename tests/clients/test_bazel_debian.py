"""Debian's Bazel (4.2.3), unmodified, at a door with tokens. (Its gRPC cannot TLS: it crashes on any ``grpcs://``.)"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.bazel import Bazel, NoBazel, debians_bazel, write_workspace
from corral.testing.processes import CorralProcess, why_no_agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SETTINGS = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=127.0.0.1:0")
TOKEN = "token-of-ann-0123456789"
TENANTS = f"""
[tenants.ann]
tokens = ["{TOKEN}"]
[tenants.bob]
tokens = ["token-of-bob-0123456789"]
"""


@pytest.fixture(scope="module")
def bazel() -> Iterator[Bazel]:
    if why := why_no_agent():
        pytest.skip(why)
    try:
        program = debians_bazel()
    except NoBazel as reason:
        pytest.skip(str(reason))
    with tempfile.TemporaryDirectory(prefix="corral-bazel-", dir="/tmp") as folder:
        workspace = Path(folder) / "workspace"
        write_workspace(workspace, genrules=3)
        with (workspace / ".bazelrc").open("a") as settings:
            settings.write("build --nosandbox_debug\n")  # Debian's own settings ask for it, and its sandbox cannot
        with Bazel(program, Path(folder), workspace, startup=("--nohome_rc",)) as running:
            yield running


def corral(folder: Path, config: str) -> CorralProcess:
    folder.mkdir()
    (folder / "corral.toml").write_text(config)
    process = CorralProcess("up", folder, *SETTINGS)
    process.start()
    return process


def test_it_tests_remotely_with_a_token_and_finds_everything_again(bazel: Bazel, tmp_path: Path) -> None:
    up = corral(tmp_path / "up", TENANTS)
    try:
        remote = (f"--remote_executor=grpc://{up.reapi}", f"--remote_header=authorization=Bearer {TOKEN}")
        first = bazel.run("test", *remote, "//...")
        bazel.run("clean")
        second = bazel.run("test", *remote, "--remote_instance_name=ann", "//...")
        bazel.run("clean")
        foreign = bazel.run("build", *remote, "--remote_instance_name=bob", "//:n0")
        nobody = bazel.run("build", remote[0], "//:n0")
    finally:
        assert up.stop() == 0, up.words()

    assert first.status == 0, first.words
    assert first.processes["remote"] > 10
    assert "2 tests pass" in first.words
    assert second.status == 0, second.words
    assert second.processes["remote cache hit"] == first.processes["remote"]
    assert "remote" not in second.processes
    assert foreign.status != 0
    assert "PERMISSION_DENIED" in foreign.words
    assert nobody.status != 0
    assert "UNAUTHENTICATED" in nobody.words
