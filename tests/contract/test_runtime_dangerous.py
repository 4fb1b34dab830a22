"""The runtime without walls keeps what of the contract it claims."""

from collections.abc import Iterator

import pytest

from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.runtime_contract import RuntimeContract


class TestReallyReallyDangerous(RuntimeContract):
    @pytest.fixture(scope="class")
    def runtime(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
        config = RuntimesConfig(names=("really_really_dangerous",))
        with open_runtimes(config, tmp_path_factory.mktemp("sandboxes")) as runtimes:
            yield runtimes["really_really_dangerous"]
