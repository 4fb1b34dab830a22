"""Every runtime with walls stands against the table of attacks."""

from collections.abc import Iterator

import pytest

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.oci import OciConfig
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.escape_suite import EscapeSuite

KINDS = {
    "bubblewrap": RuntimesConfig(names=("bubblewrap",)),
    "crun": RuntimesConfig(names=("oci",), oci=OciConfig(program="crun")),
    "runc": RuntimesConfig(names=("oci",), oci=OciConfig(program="runc")),
    "gvisor": RuntimesConfig(names=("gvisor",)),
}


@pytest.fixture(
    scope="module",
    params=["bubblewrap", "crun", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("runc", "gvisor"))],
)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    config = KINDS[request.param]
    try:
        with open_runtimes(config, tmp_path_factory.mktemp("sandboxes")) as runtimes:
            yield runtimes[config.names[0]]
    except SandboxFailed as error:
        pytest.skip(f"{error}: {error.cure}")


class TestEscapes(EscapeSuite):
    """Nothing to add."""
