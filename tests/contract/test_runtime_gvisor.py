"""The gvisor runtime keeps the contract."""

import os
from collections.abc import Iterator

import pytest

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.ports import Runtime, Snapshotting
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.runtime_contract import RuntimeContract, new_spec, processes_with
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


async def test_a_restored_sandbox_is_its_tenant_s_on_the_host_too(runtime: Runtime, snapshotting: Snapshotting) -> None:
    first = RuntimesConfig().tenant_uid_first
    fresh = await runtime.start(spec := new_spec())
    owners = [{os.stat(f"/proc/{pid}").st_uid for pid in processes_with(spec.id)}]
    box = await snapshotting.restore(await snapshotting.snapshot(fresh), spec := new_spec())
    try:
        owners.append({os.stat(f"/proc/{pid}").st_uid for pid in processes_with(spec.id)})
    finally:
        await box.stop()

    assert owners[0] == owners[1]
    assert min(owners[0]) >= first
    assert max(owners[0]) == min(owners[0]) + 1  # runsc as root of its namespace, and its kernel as nobody in there
