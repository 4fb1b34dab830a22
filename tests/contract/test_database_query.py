"""A query without SQLAlchemy's price gives what SQLAlchemy would give, on both databases."""

from typing import Any, Final

import pytest
from sqlalchemy import bindparam, insert, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.query import Query
from corral.database.tables import idempotency_keys as table

NAMES: Final = [f"k{number}" for number in range(9)]
CHOSEN: Final = Query(
    select(table.c.key, table.c.task_ids)
    .where(table.c.key.in_(bindparam("names", expanding=True)), table.c.tenant.in_(["acme", "other"]))
    .order_by(table.c.key)
    .limit(bindparam("count")),
    lists=["names"],
)


@pytest.fixture
async def filled(database: Database) -> Database:
    rows: list[dict[str, Any]] = [
        {"tenant": "acme", "key": name, "request": "", "task_ids": name.encode(), "created_s": 1.0} for name in NAMES
    ]
    await database.write(lambda connection: connection.execute(insert(table), rows))
    return database


@pytest.mark.parametrize("length", range(len(NAMES) + 1))
async def test_a_list_of_any_length_finds_its_rows_once(filled: Database, length: int) -> None:
    values = {"names": NAMES[:length], "count": 100}

    read = await filled.read(lambda connection: CHOSEN.rows(connection, values))
    written = await filled.write(lambda connection: CHOSEN.rows(connection, values))

    assert [tuple(row) for row in read] == [(name, name.encode()) for name in NAMES[:length]]
    assert list(read) == list(written)


async def test_the_same_list_may_stand_in_many_places(filled: Database) -> None:
    def part(parameter: str) -> Any:
        chosen = table.c.key.in_(bindparam("names", expanding=True))
        return select(table.c.key).where(chosen, table.c.key > bindparam(parameter))

    query = Query(union_all(part("first"), part("second")), lists=["names"])
    values = {"names": NAMES[:3], "first": "k0", "second": "k1"}

    rows = await filled.read(lambda connection: query.rows(connection, values))

    assert sorted(key for (key,) in rows) == ["k1", "k2", "k2"]


async def test_a_query_sees_what_its_own_write_has_done_and_nobody_else_does_before_the_commit(
    filled: Database,
) -> None:
    async def rename(connection: AsyncConnection) -> tuple[list[Any], list[Any]]:
        await CHOSEN.rows(connection, {"names": ["k0"], "count": 1})
        await connection.execute(table.update().where(table.c.key == "k0").values(key="new"))
        mine = await CHOSEN.rows(connection, {"names": ["k0", "new"], "count": 9})
        theirs = await filled.read(lambda other: CHOSEN.rows(other, {"names": ["k0", "new"], "count": 9}))
        return [key for key, _ in mine], [key for key, _ in theirs]

    assert await filled.write(rename) == (["new"], ["k0"])


async def test_a_query_in_a_write_that_fails_leaves_nothing_of_it(filled: Database) -> None:
    async def fail(connection: AsyncConnection) -> None:
        await CHOSEN.rows(connection, {"names": ["k0"], "count": 1})
        await connection.execute(table.delete())
        raise KeyError("undone")

    with pytest.raises(KeyError):
        await filled.write(fail)

    rows = await filled.read(lambda connection: CHOSEN.rows(connection, {"names": NAMES, "count": 100}))
    assert len(rows) == len(NAMES)
