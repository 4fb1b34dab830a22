"""The few statements that the dialects spell differently, so that repositories stay the same for both."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.batch import ManyRows


def insert_new(connection: AsyncConnection, table: Table) -> Insert:
    """An INSERT that passes over rows whose unique key is taken."""
    return _insert_new(connection.dialect.name, table)


def many_new(table: Table, columns: Sequence[str]) -> Mapping[str, ManyRows]:
    """The same for many rows of ``columns``, by the name of the dialect."""
    return {dialect: ManyRows(_insert_new(dialect, table), columns) for dialect in ("postgresql", "sqlite")}


def _insert_new(dialect: str, table: Table) -> Insert:
    if dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def many_or_update(table: Table) -> Mapping[str, ManyRows]:
    """An INSERT of whole rows, many, that replaces a row whose primary key is taken; by the name of the dialect."""
    columns = [column.name for column in table.columns]
    return {dialect: ManyRows(_insert_or_update(dialect, table), columns) for dialect in ("postgresql", "sqlite")}


def _insert_or_update(dialect: str, table: Table) -> Insert:
    key = [column.name for column in table.primary_key]
    others = [column.name for column in table.columns if column.name not in key]
    if dialect == "postgresql":
        statement = postgresql.insert(table)
        excluded = {name: statement.excluded[name] for name in others}
        return statement.on_conflict_do_update(index_elements=key, set_=excluded)
    replacing = sqlite.insert(table)
    return replacing.on_conflict_do_update(key, set_={name: replacing.excluded[name] for name in others})
