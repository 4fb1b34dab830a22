"""SQLite: one writer that commits in groups, and a few readers that never wait for it (WAL)."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from corral.database.errors import FOREIGN, mapped
from corral.database.limits import DatabaseLimits
from corral.database.ports import Backend
from corral.database.sqlite_thread import SqliteConnection, thread_of
from corral.database.url import DatabaseUrl
from corral.kernel.concurrency import background, finish
from corral.kernel.errors import CorralError, QueueFull, StoreUnavailable

T = TypeVar("T")
_PRAGMAS: Final = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY", "cache_size=-8192")
_SAVEPOINT: Final = "one_write"


@dataclass(eq=False, slots=True)
class _Waiting:
    """A write that waits for its turn, and then for the commit."""

    transaction: Callable[[AsyncConnection], Awaitable[Any]]
    answer: "asyncio.Future[Any]"


@asynccontextmanager
async def open_sqlite(url: DatabaseUrl, limits: DatabaseLimits) -> AsyncIterator[Backend]:
    """Open the file, creating it when absent, and run the writer. Raises StoreUnavailable."""
    readers = _engine(url, limits, begin="BEGIN", pragmas=(*_PRAGMAS, "query_only=ON"))
    writing = _engine(url, limits, begin="BEGIN IMMEDIATE", pragmas=_PRAGMAS)
    try:
        async with AsyncExitStack() as stack:
            writer = _Writer(writing, limits)
            stack.push_async_callback(writer.disconnect)
            await writer.connect()
            task = await stack.enter_async_context(background(writer.run(), name="database-writer"))
            try:
                yield SqliteBackend(readers, writer)
            finally:
                writer.close_nowait()
                await finish(_ended(task), within_s=limits.write_timeout_s)
    finally:
        await readers.dispose()
        await writing.dispose()


class SqliteBackend:
    """See ``ports.Backend``."""

    def __init__(self, readers: AsyncEngine, writer: "_Writer") -> None:
        self._readers = readers
        self._writer = writer

    async def read(self, query: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        try:
            async with self._readers.connect() as connection:
                return await query(connection)
        except FOREIGN as error:
            raise mapped(error) from error

    async def write(self, transaction: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await self._writer.write(transaction)


class _Writer:
    """The only one that writes. What it owns is touched by its task alone; callers only queue and wait."""

    def __init__(self, engine: AsyncEngine, limits: DatabaseLimits) -> None:
        self._engine = engine
        self._limits = limits
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._connection: AsyncConnection | None = None

    async def write(self, transaction: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        if self._closing:
            raise StoreUnavailable("the database is being closed")
        if len(self._waiting) >= self._limits.writes_waiting:
            raise QueueFull(
                f"{self._limits.writes_waiting} writes wait for the database already", limit=self._limits.writes_waiting
            )
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(transaction, answer))
        self._wake.set()
        return await answer

    def close_nowait(self) -> None:
        """Refuse new writes; the task ends when those that wait are done."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Commit groups until closed."""
        try:
            while batch := await self._next_batch():
                await self._commit_together(batch)
        finally:
            self._closing = True
            while self._waiting:
                _fail(self._waiting.popleft(), StoreUnavailable("the database was closed before the write began"))

    async def _next_batch(self) -> list[_Waiting]:
        """All that wait now, up to a batch; waits for the first. Empty when closed."""
        while True:
            batch: list[_Waiting] = []
            while self._waiting and len(batch) < self._limits.batch:
                waiting = self._waiting.popleft()
                if not waiting.answer.done():  # else canceled, and thereby taken back
                    batch.append(waiting)
            if batch or self._closing:
                return batch
            self._wake.clear()
            await self._wake.wait()

    async def _commit_together(self, batch: list[_Waiting]) -> None:
        """One transaction, one fsync; each write succeeds or fails alone, unless the transaction itself is lost."""
        try:
            connection = await self.connect()
            thread = thread_of(connection)
            done = [(each, value) for each in batch for value in await self._attempt(connection, thread, each)]
            await _commit(connection, thread)
        except FOREIGN as error:
            lost: BaseException = mapped(error)
        except _TransactionLost as error:
            lost = error.__cause__ or error
        except BaseException:
            for each in batch:
                _fail(each, StoreUnavailable("the database was closed during the write"))
            raise
        else:
            for each, value in done:
                if not each.answer.done():
                    each.answer.set_result(value)
            return
        for each in batch:
            _fail(each, lost)
        await self.disconnect()

    async def _attempt(self, connection: AsyncConnection, thread: SqliteConnection, each: _Waiting) -> list[Any]:
        """Run one write under its savepoint: ``[value]``, or ``[]`` when it failed alone and was told so."""
        _put_savepoint(thread)
        try:
            async with asyncio.timeout(self._limits.write_timeout_s):
                value = await each.transaction(connection)
        except Exception as error:  # noqa: BLE001 - boundary: a failed write belongs to its caller alone
            failure = mapped(error) if isinstance(error, FOREIGN) else error
            if connection.invalidated or _is_lost(thread):
                raise _TransactionLost from failure  # a full disk, for example, rolls everything back
            if not thread.prelude_pending:
                await thread.run(lambda: thread.raw.execute(f"ROLLBACK TO {_SAVEPOINT}"))
            _fail(each, failure)
            return []
        if _is_lost(thread):
            raise _TransactionLost from CorralError("a defect of Corral: a write ended the transaction that it shares")
        return [value]

    async def connect(self) -> AsyncConnection:
        """The connection, opened again when it was lost."""
        if self._connection is None:
            try:
                self._connection = await self._engine.connect()
            except FOREIGN as error:
                raise mapped(error) from error
        return self._connection

    async def disconnect(self) -> None:
        """Close the connection; what it had not committed is undone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()


class _TransactionLost(Exception):
    """The transaction that the group shares is gone; the cause is why."""


def _put_savepoint(thread: SqliteConnection) -> None:
    """Let the next statement begin with a savepoint, after releasing the previous write's."""
    release = (f"RELEASE {_SAVEPOINT}",) if thread.in_transaction else ()
    thread.put_before_next_nowait(*release, f"SAVEPOINT {_SAVEPOINT}")


def _is_lost(thread: SqliteConnection) -> bool:
    """True when the write did something, and now no transaction is open."""
    return not thread.prelude_pending and not thread.in_transaction


def _leave(raw: sqlite3.Connection) -> None:
    raw.execute(f"RELEASE {_SAVEPOINT}")
    raw.execute("COMMIT")


async def _commit(connection: AsyncConnection, thread: SqliteConnection) -> None:
    if thread.in_transaction and thread.wrote_nothing:
        _leave(thread.raw)
    elif thread.in_transaction:
        await thread.run(lambda: _leave(thread.raw))
    if connection.in_transaction():
        await connection.rollback()  # only SQLAlchemy's own state


def _fail(waiting: _Waiting, error: BaseException) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


async def _ended(task: "asyncio.Task[None]") -> None:
    await asyncio.wait({task})


def _engine(url: DatabaseUrl, limits: DatabaseLimits, *, begin: str, pragmas: Sequence[str]) -> AsyncEngine:
    async def opened(*_: object, **__: object) -> SqliteConnection:
        return await SqliteConnection(
            str(url.path), begin=begin, pragmas=pragmas, busy_timeout_s=limits.busy_timeout_s
        ).open()

    return create_async_engine(
        url.url,
        pool_size=limits.readers,
        max_overflow=0,
        pool_timeout=limits.connect_timeout_s,
        connect_args={"async_creator_fn": opened},
    )
