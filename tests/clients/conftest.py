"""A Corral and a Bazel workspace for the tests of one file."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.testing.bazel import GENRULES, Bazel, NoBazel, bazel_program, write_workspace
from corral.testing.processes import CorralProcess, why_no_agent


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corral-bazel-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def corral(home: Path) -> Iterator[CorralProcess]:
    if why := why_no_agent():
        pytest.skip(why)
    settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=127.0.0.1:0")
    process = CorralProcess("up", home / "corral", *settings)
    process.start()
    yield process
    assert process.stop() == 0, process.words()


@pytest.fixture(scope="module")
def bazel(home: Path) -> Iterator[Bazel]:
    try:
        program = bazel_program()
    except NoBazel as reason:
        pytest.skip(f"no Bazel here: {reason}")
    workspace = home / "workspace"
    write_workspace(workspace, genrules=GENRULES)
    with Bazel(program, home, workspace) as running:
        yield running
