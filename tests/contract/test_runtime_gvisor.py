"""The gvisor runtime keeps the contract."""

from collections.abc import Iterator

import pytest

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.ports import Runtime, Snapshotting
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.runtime_contract import RuntimeContract
from corral.testing.snapshot_contract import SnapshotContract

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    try:
        with open_runtimes(RuntimesConfig(names=("gvisor",)), tmp_path_factory.mktemp("sandboxes")) as runtimes:
            yield runtimes["gvisor"]
    except SandboxFailed as error:
        pytest.skip(f"{error}: {error.cure}")


@pytest.fixture(scope="module")
def snapshotting(runtime: Runtime) -> Snapshotting:
    if not runtime.capabilities.snapshot:
        pytest.skip("a worker that is not root restores no checkpoints of runsc")
    assert isinstance(runtime, Snapshotting)
    return runtime


@pytest.fixture
def root() -> str:
    return ""


class TestGvisor(RuntimeContract):
    """Nothing to add."""


class TestGvisorSnapshots(SnapshotContract):
    """Nothing to add."""
