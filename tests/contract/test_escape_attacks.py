"""Every runtime with walls stands against the table of attacks."""

from collections.abc import Iterator

import msgspec
import pytest

from corral.kernel.errors import SandboxFailed
from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.oci import OciConfig
from corral.sandboxes.runtimes.qemu_config import QemuConfig
from corral.sandboxes.runtimes.registry import MACHINES, RuntimesConfig, open_runtimes
from corral.testing.escape_suite import EscapeSuite
from corral.testing.machines import WithRoot, build_root, kits, why_no_machines

KINDS = {
    "bubblewrap": RuntimesConfig(names=("bubblewrap",)),
    "crun": RuntimesConfig(names=("oci",), oci=OciConfig(program="crun")),
    "runc": RuntimesConfig(names=("oci",), oci=OciConfig(program="runc")),
    "gvisor": RuntimesConfig(names=("gvisor",)),
    "qemu": RuntimesConfig(names=("qemu",), start_within_s=30.0, qemu=QemuConfig(accelerator="tcg")),
}


@pytest.fixture(
    scope="module",
    params=["bubblewrap", "crun", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("runc", "gvisor", "qemu"))],
)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    config = KINDS[request.param]
    if config.names[0] in MACHINES:
        if why := why_no_machines():
            pytest.skip(why)
        config = msgspec.structs.replace(config, kits=str(kits()))
    try:
        with open_runtimes(config, tmp_path_factory.mktemp("sandboxes")) as runtimes:
            runtime = runtimes[config.names[0]]
            if config.names[0] in MACHINES:
                runtime = WithRoot(runtime, build_root(tmp_path_factory.mktemp("image")))
            yield runtime
    except SandboxFailed as error:
        pytest.skip(f"{error}: {error.cure}")


class TestEscapes(EscapeSuite):
    """Nothing to add."""
