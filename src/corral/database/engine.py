"""One database for everybody: ``read`` and ``write`` take a function and run it in a transaction.

On PostgreSQL every write is a transaction of its own. On SQLite there is one writer: it takes all writes that wait,
runs them in one transaction, each under its own savepoint so that one that fails undoes nothing else, and commits
them with one fsync (*group commit*); so many small writes at once cost little more than one.
The functions use the same SQLAlchemy Core statements on both.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.limits import DatabaseLimits
from corral.database.ports import Backend
from corral.database.postgres import open_postgres
from corral.database.sqlite import open_sqlite
from corral.database.url import DatabaseUrl
from corral.kernel.errors import StoreUnavailable

T = TypeVar("T")
Transaction = Callable[[AsyncConnection], Awaitable[T]]


class Database:
    """The open database. Made by :meth:`open`; closed when that context ends."""

    def __init__(self, url: DatabaseUrl, backend: Backend) -> None:
        self.url = url
        self._backend = backend

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, limits: DatabaseLimits | None = None) -> "AsyncIterator[Database]":
        """Open ``sqlite:///relative``, ``sqlite:////absolute`` or ``postgresql://user@host/name``.

        Leaving the context carries out the writes that wait, refuses new ones, and closes all connections.

        Raises:
            InvalidSpec: the URL is neither of the two.
            StoreUnavailable: it cannot be opened, or does not answer.
        """
        parsed = DatabaseUrl.parse(url)
        chosen = limits or DatabaseLimits()
        async with (open_sqlite if parsed.is_sqlite else open_postgres)(parsed, chosen) as backend:
            yield cls(parsed, backend)

    async def write(self, transaction: Transaction[T]) -> T:
        """Run ``transaction`` and make it durable; its value is returned only after the commit.

        ``transaction`` uses nothing but the connection: it neither commits nor waits for anything else, and it may
        be called again when PostgreSQL asks for a repetition. If it raises, nothing of it is kept, and errors that
        are not the database's leave unchanged.

        Raises:
            Conflict: a unique or foreign key was violated.
            InvalidSpec: a value does not fit.
            QueueFull: too many writes wait already.
            QuotaExceeded: the disk is full.
            StoreUnavailable: the database failed; after a failed commit nothing is known on PostgreSQL.
        Cancellation: the write happens entirely or not at all; one that still waits is taken back, one that has
        begun runs to its end, and the caller does not learn which.
        """
        return await self._backend.write(transaction)

    async def read(self, query: Transaction[T]) -> T:
        """Run ``query`` on one consistent snapshot; it cannot write.

        Raises: StoreUnavailable. Cancellation: safe.
        """
        return await self._backend.read(query)

    async def wait_answering(self) -> None:
        """Return when the database answers a query. Raises StoreUnavailable when it does not."""

        async def ask(connection: AsyncConnection) -> object:
            return (await connection.exec_driver_sql("SELECT 1")).scalar_one()

        if await self.read(ask) != 1:
            raise StoreUnavailable("the database answers, but not what was asked")
