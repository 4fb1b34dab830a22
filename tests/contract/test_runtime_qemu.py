"""The qemu runtime keeps the contract: machines that go on from a template, emulated, so that every machine can."""

from collections.abc import Iterator

import pytest

from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.qemu_config import QemuConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.machines import WithRoot, build_root, kits, why_no_machines
from corral.testing.runtime_contract import RuntimeContract

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    if why := why_no_machines():
        pytest.skip(why)
    root = build_root(tmp_path_factory.mktemp("image"))
    config = RuntimesConfig(names=("qemu",), kits=str(kits()), start_within_s=30.0, qemu=QemuConfig(accelerator="tcg"))
    with open_runtimes(config, tmp_path_factory.mktemp("sandboxes")) as runtimes:
        yield WithRoot(runtimes["qemu"], root)


class TestQemu(RuntimeContract):
    """Nothing to add."""
