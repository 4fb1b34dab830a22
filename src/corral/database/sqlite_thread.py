"""A SQLite connection on a thread of its own, with one hop per statement, or none.

SQLAlchemy's aiosqlite dialect speaks to a connection object through five coroutines. The package aiosqlite makes
four hops between threads for each statement (open a cursor, execute, fetch, close) and each costs more than the
statement itself; this connection makes one, and opens the transaction in the same hop. It is handed to the dialect by
``async_creator_fn``. Rows are fetched at once: every query of ours is bounded.

A statement that takes microseconds, in a snapshot or in a transaction whose lock we hold (so there is nothing to wait
for), costs less than the hop to the thread: ``run_short`` executes it where it is called. A lock that another process
holds is waited for on the thread, and so is the disk, when something was written.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
Job = Callable[[], None]
_ASK_AGAIN_S: Final = 0.01
_TAKE_SNAPSHOT: Final = "PRAGMA schema_version"  # the first that is read is what all of a transaction sees


class SqliteConnection:
    """One sqlite3 connection and the thread that touches it; jobs run in order.

    ``begin`` is the statement that opens a transaction when a statement comes and none is open: a snapshot for
    readers (``BEGIN``), the write lock for the writer (``BEGIN IMMEDIATE``).

    Cancellation: of any call, leaves the job running to its end on the thread; the next job comes after it.
    """

    def __init__(self, path: str, *, begin: str, pragmas: Sequence[str], busy_timeout_s: float) -> None:
        self._path = path
        self._begin = begin
        self._pragmas = pragmas
        self._busy_timeout_s = busy_timeout_s
        self._connection: sqlite3.Connection | None = None  # this name too is part of the dialect's expectations
        self._prelude: tuple[str, ...] = ()
        self._under_way = 0
        self._changes_before = 0
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="sqlite", daemon=True)

    async def open(self) -> Self:
        """Start the thread and open the file. Raises sqlite3.Error."""
        self._thread.start()
        try:
            await self.run(self._connect)
        except BaseException:
            self.stop()
            raise
        return self

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the thread."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                value = work()
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
                self._tell(loop, answer, None, error)
            else:
                self._tell(loop, answer, value, None)

        self._under_way += 1
        self._jobs.put(job)
        return await answer

    async def run_short(self, work: Callable[[], T]) -> T:
        """Run ``work``, a few statements that take microseconds: here when that is safe, else on the thread."""
        if self._under_way or not (self.in_transaction or self._begin_nowait()):
            return await self.run(work)
        return work()

    def _begin_nowait(self) -> bool:
        """Open a transaction with what it may have to wait for: a snapshot, or the write lock if nobody else has it."""
        raw = self._connection
        if raw is None:
            return False
        raw.execute("PRAGMA busy_timeout=0")
        try:
            raw.execute(self._begin)
            if not self._begin.endswith("IMMEDIATE"):
                raw.execute(_TAKE_SNAPSHOT).fetchall()
        except sqlite3.OperationalError:
            if raw.in_transaction:
                raw.rollback()
            return False  # the thread waits, or hears again what is wrong
        finally:
            raw.execute(f"PRAGMA busy_timeout={round(self._busy_timeout_s * 1000)}")
        self._changes_before = raw.total_changes
        return True

    @property
    def wrote_nothing(self) -> bool:
        """True when the open transaction has changed no row: its end waits for nothing."""
        return not self._under_way and self.raw.total_changes == self._changes_before

    @property
    def raw(self) -> sqlite3.Connection:
        """The connection. Raises sqlite3.ProgrammingError when closed; touch it only on the thread."""
        if self._connection is None:
            raise sqlite3.ProgrammingError("connection closed")
        return self._connection

    @property
    def in_transaction(self) -> bool:
        """True between the first statement of a transaction and its end."""
        return self._connection is not None and self._connection.in_transaction

    def put_before_next_nowait(self, *statements: str) -> None:
        """Execute ``statements`` in the hop of the next one, and not before; they replace those put earlier."""
        self._prelude = statements

    @property
    def prelude_pending(self) -> bool:
        """True while no statement has come since ``put_before_next_nowait``."""
        return bool(self._prelude)

    def execute_nowait(self, sql: str, parameters: Any, *, many: bool) -> sqlite3.Cursor:
        """Open a transaction when none is, then execute; on the thread only."""
        raw = self.raw
        if not raw.in_transaction:
            raw.execute(self._begin)
            self._changes_before = raw.total_changes
        prelude, self._prelude = self._prelude, ()
        for statement in prelude:
            raw.execute(statement)
        return raw.executemany(sql, parameters) if many else raw.execute(sql, parameters)

    # The rest is what SQLAlchemy's dialect calls.

    @property
    def isolation_level(self) -> str | None:
        return None

    def cursor(self) -> "SqliteCursor":
        return SqliteCursor(self)

    async def commit(self) -> None:
        if self.in_transaction:
            await self.run(self.raw.commit)

    async def rollback(self) -> None:
        if not self.in_transaction:
            return
        if self.wrote_nothing:
            self.raw.rollback()
        else:
            await self.run(self.raw.rollback)

    async def create_function(self, *arguments: Any, **keywords: Any) -> None:
        await self.run(lambda: self.raw.create_function(*arguments, **keywords))

    async def close(self) -> None:
        if self._connection is not None:
            await self.run(self._disconnect)
        self._jobs.put(None)

    def stop(self) -> None:
        """Close without waiting."""
        self._jobs.put(self._disconnect)
        self._jobs.put(None)

    def _connect(self) -> None:
        raw = sqlite3.connect(
            self._path,
            timeout=0.0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in (*self._pragmas, f"busy_timeout={round(self._busy_timeout_s * 1000)}"):
                _execute_patiently(raw, f"PRAGMA {pragma}", within_s=self._busy_timeout_s)
        except BaseException:
            raw.close()
            raise
        self._connection = raw

    def _disconnect(self) -> None:
        raw, self._connection = self._connection, None
        if raw is not None:
            raw.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _tell(
        self, loop: asyncio.AbstractEventLoop, answer: "asyncio.Future[Any]", value: Any, error: BaseException | None
    ) -> None:
        def settle() -> None:
            self._under_way -= 1
            if answer.done():  # the one who waited was canceled
                return
            if error is None:
                answer.set_result(value)
            else:
                answer.set_exception(error)

        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            if not loop.is_closed():
                raise


class SqliteCursor:
    """A cursor that has everything after ``execute``."""

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def execute(self, sql: str, parameters: Any = ()) -> Self:
        await self._connection.run(lambda: self._execute(sql, parameters, many=False))
        return self

    async def executemany(self, sql: str, parameters: Any) -> Self:
        await self._connection.run(lambda: self._execute(sql, parameters, many=True))
        return self

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        count = self.arraysize if size is None else size
        rows, self._rows = self._rows[:count], self._rows[count:]
        return rows

    async def close(self) -> None:
        self._rows = []

    def _execute(self, sql: str, parameters: Any, *, many: bool) -> None:
        cursor = self._connection.execute_nowait(sql, parameters, many=many)
        self.description = cursor.description
        self._rows = cursor.fetchall() if cursor.description else []
        self.rowcount = cursor.rowcount
        self.lastrowid = cursor.lastrowid
        cursor.close()


def _execute_patiently(raw: sqlite3.Connection, statement: str, *, within_s: float) -> None:
    """Execute, and again while somebody else has the lock: to become WAL, SQLite itself waits only for some of them."""
    for _ in range(round(within_s / _ASK_AGAIN_S)):
        try:
            raw.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(_ASK_AGAIN_S)
        else:
            return
    raw.execute(statement)


def thread_of(connection: AsyncConnection) -> SqliteConnection:
    """The connection below SQLAlchemy's. Raises TypeError when it is not SQLite's."""
    proxied = connection.sync_connection
    found = None if proxied is None else proxied.connection.driver_connection
    if not isinstance(found, SqliteConnection):
        raise TypeError(f"expected a SqliteConnection, not {found!r}")
    return found
