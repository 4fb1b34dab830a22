"""The root of the configuration and the sections that belong to the processes themselves.

Every other section is defined by the component that obeys it; see ``docs/reference/configuration.md``.
"""

import os
from pathlib import Path

import msgspec

from corral.kernel.errors import InvalidSpec


def _default_data_dir() -> str:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return str(Path(base) / "corral")


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the REST door.

    Attributes:
        body_bytes: largest JSON request; blobs have their own limit.
        batch_tasks: most tasks in one submission.
        page_rows: most rows in one page of a listing.
        wait_s: longest that a "wait until it changed" request is held.
        streams: most log and event streams that are open at once.
        stop_s: how long open requests may finish when the process stops.
    """

    body_bytes: int = 8 * 1024**2
    batch_tasks: int = 1000
    page_rows: int = 1000
    wait_s: float = 30.0
    streams: int = 1000
    stop_s: float = 3.0


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler process.

    Attributes:
        http: address of REST, ``HOST:PORT``; port 0 takes a free one.
        grpc: address for workers, ``HOST:PORT``; port 0 takes a free one.
        database: ``sqlite:///PATH`` or ``postgresql://…``; "" is ``corral.db`` in the data directory.
        sweep_s: how often the sweeper looks for leases, deadlines and expiries that are due.
        clean_s: how often the blob store is cleaned.
        stop_s: longest orderly stop before the process leaves anyway.
        http_limits: limits of the REST door.
    """

    http: str = "127.0.0.1:7070"
    grpc: str = "127.0.0.1:7071"
    database: str = ""
    sweep_s: float = 0.5
    clean_s: float = 300.0
    stop_s: float = 10.0
    http_limits: HttpConfig = HttpConfig()

    def __post_init__(self) -> None:
        mistakes = [
            f"{name}: {problem}" for name in ("http", "grpc") if (problem := _address_problem(getattr(self, name)))
        ]
        if self.database and not self.database.startswith(("sqlite:///", "postgresql://")):
            mistakes.append(f'database: "{self.database}" is neither "sqlite:///PATH" nor "postgresql://…"')
        if mistakes:
            raise InvalidSpec(mistakes[0], mistakes=tuple(mistakes))


class SupervisorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``corral up``: how children are started again.

    Attributes:
        ready_s: longest from the start to "ready".
        backoff_s: pause before the first restart; doubles with each further one up to ``backoff_max_s``.
        backoff_max_s: the longest pause.
        restarts: more restarts of one child than this within ``restarts_within_s`` and ``corral up`` gives up.
        restarts_within_s: the window in which restarts are counted.
        stop_s: how long the worker may finish its tasks when everything stops.
    """

    ready_s: float = 60.0
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0
    restarts: int = 60
    restarts_within_s: float = 60.0
    stop_s: float = 10.0


def split_address(address: str) -> tuple[str, int]:
    """``"127.0.0.1:7070"`` → host and port; ``"[::1]:7070"`` works too. Raises InvalidSpec."""
    problem = _address_problem(address)
    if problem:
        raise InvalidSpec(problem, field="address")
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _address_problem(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        return f'"{address}" is not an address; write HOST:PORT, for example "127.0.0.1:7070"'
    return ""
