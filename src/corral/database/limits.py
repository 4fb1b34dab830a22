"""Bounds of the database; a section of the configuration."""

import msgspec


class DatabaseLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one process's use of the database.

    Attributes:
        readers: connections that read at once.
        writers: connections that write at once; PostgreSQL only (SQLite has one writer).
        writes_waiting: writes that may wait; one more is refused with QueueFull.
        batch: writes that SQLite commits together.
        write_timeout_s: for one write, once it has begun; then it is rolled back.
        connect_timeout_s: for a connection, or for a free one of the pool.
        busy_timeout_s: how long SQLite waits for another process's write lock.
        attempts: how often PostgreSQL's serialization failures and deadlocks are tried.
    """

    readers: int = 4
    writers: int = 8
    writes_waiting: int = 10_000
    batch: int = 256
    write_timeout_s: float = 30.0
    connect_timeout_s: float = 10.0
    busy_timeout_s: float = 10.0
    attempts: int = 5

    def __post_init__(self) -> None:
        for name in ("readers", "writers", "writes_waiting", "batch", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("write_timeout_s", "connect_timeout_s", "busy_timeout_s"):
            if not 0 < getattr(self, name) <= 3600:
                raise ValueError(f"{name} must be above 0 and at most 3600 seconds")
