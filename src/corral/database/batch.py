"""One statement for many rows, and several such statements in a row, without paying for each row in Python.

SQLAlchemy prepares the parameters of every row of an ``executemany`` on its own, which costs more than SQLite needs to
write it, and each statement costs a hop between threads. Here a statement is compiled once, rows are plain tuples, and
on SQLite all statements of one call make one hop, or none when they are short.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Insert, Update
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.sqlite_thread import thread_of

Rows = Sequence[Mapping[str, Any]]
_SHORT_ROWS: Final = 64


class ManyRows:
    """An INSERT of ``columns``, or an UPDATE whose bound parameters they name. Values are what the driver takes."""

    def __init__(self, statement: Insert | Update, columns: Sequence[str]) -> None:
        self.statement = statement
        self._columns = tuple(columns)
        self._sqlite: tuple[str, tuple[str, ...]] | None = None

    def for_sqlite(self, dialect: Dialect) -> tuple[str, tuple[str, ...]]:
        """The text, and the names of its parameters in order."""
        if self._sqlite is None:
            compiled = self.statement.compile(dialect=dialect, column_keys=list(self._columns))
            names = getattr(compiled, "positiontup", None)
            if names is None or set(names) != set(self._columns):
                raise TypeError(f"the parameters of {compiled} are not exactly {self._columns}")
            self._sqlite = (str(compiled), tuple(names))
        return self._sqlite


async def execute_batches(connection: AsyncConnection, batches: Sequence[tuple[ManyRows, Rows]]) -> None:
    """Execute each statement for each of its rows, in order; a batch without rows is passed over."""
    filled = [(many, rows) for many, rows in batches if rows]
    if not filled:
        return
    if connection.dialect.name != "sqlite":
        for many, rows in filled:
            await connection.execute(many.statement, rows)
        return
    thread = thread_of(connection)
    prepared: list[tuple[str, list[tuple[Any, ...]]]] = []
    for many, rows in filled:
        text, names = many.for_sqlite(connection.dialect)
        prepared.append((text, [tuple([row[name] for name in names]) for row in rows]))

    def run() -> None:
        for text, values in prepared:
            thread.execute_nowait(text, values, many=True).close()

    short = sum(len(rows) for _, rows in filled) <= _SHORT_ROWS
    await (thread.run_short(run) if short else thread.run(run))
