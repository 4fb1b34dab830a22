"""The bubblewrap runtime keeps the contract."""

from collections.abc import Iterator

import pytest

from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.runtime_contract import RuntimeContract


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with open_runtimes(RuntimesConfig(), tmp_path_factory.mktemp("sandboxes")) as runtimes:
        yield runtimes["bubblewrap"]


class TestBubblewrap(RuntimeContract):
    """Nothing to add."""
