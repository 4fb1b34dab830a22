"""Queries that run hundreds of times a second, without SQLAlchemy's price for each execution.

SQLAlchemy prepares every execution anew, which costs several times what SQLite needs to carry it out. Here a query is
compiled once and executed without a hop between threads where that is safe (``SqliteConnection.run_short``).
PostgreSQL takes SQLAlchemy's usual way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, Select
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.compiler import SQLCompiler

from corral.database.sqlite_thread import thread_of


class Query:
    """A SELECT whose rows come as tuples, in the order of its columns.

    Its parameters are named ``bindparam``s; ``lists`` are those that stand for many values (``expanding=True``).
    """

    def __init__(self, statement: Select[Any] | CompoundSelect[Any], *, lists: Sequence[str] = ()) -> None:
        self.statement = statement
        self._lists = tuple(lists)
        self._texts: dict[tuple[int, ...], _Text] = {}

    async def rows(self, connection: AsyncConnection, values: Mapping[str, Any]) -> Sequence[Any]:
        """What it finds with ``values`` for the parameters."""
        if connection.dialect.name != "sqlite":
            answer: Sequence[Any] = (await connection.execute(self.statement, values)).all()
            return answer
        padded = {name: _padded(values[name]) for name in self._lists}
        lengths = tuple([len(some) for some in padded.values()])
        text = self._texts.get(lengths)
        if text is None:
            text = self._texts[lengths] = _Text.of(self.statement, connection.dialect, {**values, **padded})
        parameters = text.parameters({**values, **padded})
        thread = thread_of(connection)

        def run() -> list[Any]:
            cursor = thread.execute_nowait(text.sql, parameters, many=False)
            try:
                return cursor.fetchall()
            finally:
                cursor.close()

        return await thread.run_short(run)


@dataclass(frozen=True, slots=True)
class _Text:
    """What SQLite gets, for lists of certain lengths.

    Each of ``slots`` is a parameter: a constant of the statement, or the value of a name, or an element of its list.
    """

    sql: str
    slots: tuple[tuple[str, int | None, Any], ...]

    @classmethod
    def of(cls, statement: Select[Any] | CompoundSelect[Any], dialect: Dialect, values: Mapping[str, Any]) -> "_Text":
        """Compile it; ``values`` give the lengths of the lists."""
        compiled = statement.compile(dialect=dialect)
        if not isinstance(compiled, SQLCompiler):
            raise TypeError(f"{statement} is no query")
        constants = compiled.construct_params(dict(values))
        expanded = compiled.construct_expanded_state(constants)
        elements = {
            element: (name, place)
            for name, some in expanded.parameter_expansion.items()
            for place, element in enumerate(some)
        }
        slots = []
        for parameter in expanded.positiontup or ():
            name, place = elements.get(parameter, (parameter, None))
            if name in values:
                slots.append((name, place, None))
            else:
                slots.append(("", None, constants[name] if place is None else constants[name][place]))
        return cls(expanded.statement, tuple(slots))

    def parameters(self, values: Mapping[str, Any]) -> list[Any]:
        """The values, in the order of the text."""
        return [
            (values[name] if place is None else values[name][place]) if name else constant
            for name, place, constant in self.slots
        ]


def _padded(values: Sequence[Any]) -> Sequence[Any]:
    """Repeat the last one up to a power of two, so that there are few texts."""
    count = len(values)
    return [*values, *[values[-1]] * ((1 << (count - 1).bit_length()) - count)] if count > 1 else values
