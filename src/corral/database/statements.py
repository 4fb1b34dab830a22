"""The few statements that the dialects spell differently, so that repositories stay the same for both."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from sqlalchemy import Insert, Table
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.batch import ManyRows


class _ByDialect(dict[str, ManyRows]):
    """Statements by the name of the dialect, made when one is first asked for: the others' modules stay unloaded."""

    def __init__(self, make: Callable[[str], ManyRows]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, dialect: str) -> ManyRows:
        made = self[dialect] = self._make(dialect)
        return made


def insert_new(connection: AsyncConnection, table: Table) -> Insert:
    """An INSERT that passes over rows whose unique key is taken."""
    return _insert_new(connection.dialect.name, table)


def many_new(table: Table, columns: Sequence[str]) -> Mapping[str, ManyRows]:
    """The same for many rows of ``columns``, by the name of the dialect."""
    return _ByDialect(lambda dialect: ManyRows(_insert_new(dialect, table), columns))


def many_or_update(table: Table) -> Mapping[str, ManyRows]:
    """An INSERT of whole rows, many, that replaces a row whose primary key is taken; by the name of the dialect."""
    columns = [column.name for column in table.columns]
    return _ByDialect(lambda dialect: ManyRows(_insert_or_update(dialect, table), columns))


def _insert(dialect: str, table: Table) -> Any:
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(table)


def _insert_new(dialect: str, table: Table) -> Insert:
    statement: Insert = _insert(dialect, table).on_conflict_do_nothing()
    return statement


def _insert_or_update(dialect: str, table: Table) -> Insert:
    key = [column.name for column in table.primary_key]
    others = [column.name for column in table.columns if column.name not in key]
    statement = _insert(dialect, table)
    excluded = {name: statement.excluded[name] for name in others}
    replacing: Insert = statement.on_conflict_do_update(index_elements=key, set_=excluded)
    return replacing
