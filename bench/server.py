"""A whole `corral up` of its own, for as long as a `with` block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from corral.testing.processes import CorralProcess, public_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running `corral up`: its address, its supervisor, and the scheduler and worker below it."""

    url: str
    supervisor: psutil.Process
    children: tuple[psutil.Process, ...]
    data: Path


@contextmanager
def running(*settings: str) -> Iterator[Server]:
    """Start it on free ports with a fresh data directory and stop it again. ``settings`` as for ``--set``."""
    with public_directory() as home:
        up = CorralProcess("up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", *settings)
        try:
            up.start()
            yield Server(url=up.url, supervisor=up.process, children=tuple(up.process.children()), data=up.data)
        finally:
            up.stop()
