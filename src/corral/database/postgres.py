"""PostgreSQL through asyncpg: a pool for reads, a pool for writes, one transaction per write."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from corral.database.errors import FOREIGN, is_retried, mapped
from corral.database.limits import DatabaseLimits
from corral.database.ports import Backend
from corral.database.url import DatabaseUrl
from corral.kernel.errors import QueueFull, StoreUnavailable

T = TypeVar("T")
_BACK_OFF_S: Final = 0.005


@asynccontextmanager
async def open_postgres(url: DatabaseUrl, limits: DatabaseLimits) -> AsyncIterator[Backend]:
    """Open the pools and ask one question. Raises StoreUnavailable when nobody answers."""
    readers = _engine(url, limits.readers, limits, isolation="REPEATABLE READ", read_only="on")
    writers = _engine(url, limits.writers, limits, isolation="READ COMMITTED", read_only="off")
    try:
        backend = PostgresBackend(readers, writers, limits)
        await backend.read(_ask)
        yield backend
    finally:
        await readers.dispose()
        await writers.dispose()


class PostgresBackend:
    """See ``ports.Backend``."""

    def __init__(self, readers: AsyncEngine, writers: AsyncEngine, limits: DatabaseLimits) -> None:
        self._readers = readers
        self._writers = writers
        self._limits = limits
        self._waiting = 0

    async def read(self, query: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        try:
            async with self._readers.connect() as connection:
                return await query(connection)
        except FOREIGN as error:
            raise mapped(error) from error

    async def write(self, transaction: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        if self._waiting >= self._limits.writes_waiting:
            raise QueueFull(f"{self._waiting} writes wait for the database already", limit=self._limits.writes_waiting)
        self._waiting += 1
        try:
            return await self._write(transaction)
        except FOREIGN as error:
            raise mapped(error) from error
        finally:
            self._waiting -= 1

    async def _write(self, transaction: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        for attempt in range(1, self._limits.attempts + 1):
            try:
                async with self._writers.begin() as connection, asyncio.timeout(self._limits.write_timeout_s):
                    return await transaction(connection)
            except FOREIGN as error:
                if not is_retried(error) or attempt == self._limits.attempts:
                    raise
            await asyncio.sleep(_BACK_OFF_S * 2**attempt)
        raise StoreUnavailable("the database asked for one repetition too many")


async def _ask(connection: AsyncConnection) -> None:
    await connection.exec_driver_sql("SELECT 1")


def _engine(url: DatabaseUrl, size: int, limits: DatabaseLimits, *, isolation: str, read_only: str) -> AsyncEngine:
    return create_async_engine(
        url.url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=limits.connect_timeout_s,
        pool_pre_ping=True,  # a restarted server costs nobody an error
        isolation_level=isolation,
        connect_args={
            "timeout": limits.connect_timeout_s,
            "server_settings": {"application_name": "corral", "default_transaction_read_only": read_only},
        },
    )
