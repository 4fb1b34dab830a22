"""The bubblewrap runtime keeps the contract."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.sandboxes.ports import Runtime
from corral.sandboxes.runtimes.registry import RuntimesConfig, open_runtimes
from corral.testing.runtime_contract import RuntimeContract


class TestBubblewrap(RuntimeContract):
    @pytest.fixture
    def runtime(self, tmp_path: Path) -> Iterator[Runtime]:
        with open_runtimes(RuntimesConfig(), tmp_path / "sandboxes") as runtimes:
            yield runtimes["bubblewrap"]
