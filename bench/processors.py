"""A share of a processor for each of some processes: a machine of few cores then shows what more processes do."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PERIOD_US: Final = 10_000
_V1: Final = Path("/sys/fs/cgroup/cpu")
_V2: Final = Path("/sys/fs/cgroup")


class NoShares(Exception):
    """Why processes cannot be held to a share here."""


@contextmanager
def held_to(share: float, pids: Sequence[int]) -> Iterator[None]:
    """Hold each process, with all its threads, to ``share`` of one processor while the block runs. Raises NoShares."""
    root = _V1 if (_V1 / "cpu.cfs_quota_us").exists() else _V2
    groups: list[Path] = []
    try:
        try:
            for held in pids:
                groups.append(Path(tempfile.mkdtemp(prefix="corral-bench-", dir=root)))
                _limit(groups[-1], share)
                (groups[-1] / "cgroup.procs").write_text(str(held))
        except OSError as error:
            raise NoShares(f"control groups for processors cannot be used: {error}") from error
        yield
    finally:
        for group in groups:
            with suppress(OSError):  # its process has ended already
                for pid in (group / "cgroup.procs").read_text().split():
                    (root / "cgroup.procs").write_text(pid)
            os.rmdir(group)


def _limit(group: Path, share: float) -> None:
    quota_us = int(_PERIOD_US * share)
    if (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    else:
        (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
