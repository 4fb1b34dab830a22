"""The runtime without walls keeps what of the contract it claims."""

from collections.abc import Iterator

import pytest

from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.runtime_contract import RuntimeContract


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with open_runtimes(
        RuntimesConfig(names=("really_really_dangerous",)), tmp_path_factory.mktemp("sandboxes")
    ) as runtimes:
        yield runtimes["really_really_dangerous"]


class TestReallyReallyDangerous(RuntimeContract):
    """Nothing to add."""
