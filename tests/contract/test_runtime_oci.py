"""The oci runtime keeps the contract, with crun and with runc."""

from collections.abc import Iterator

import pytest

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.oci import OciConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.runtime_contract import RuntimeContract


@pytest.fixture(scope="module", params=["crun", pytest.param("runc", marks=pytest.mark.slow)])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    config = RuntimesConfig(names=("oci",), oci=OciConfig(program=request.param))
    try:
        opened = open_runtimes(config, tmp_path_factory.mktemp("sandboxes"))
        with opened as runtimes:
            yield runtimes["oci"]
    except SandboxFailed as error:
        pytest.skip(f"{error}: {error.cure}")


class TestOci(RuntimeContract):
    """Nothing to add."""
