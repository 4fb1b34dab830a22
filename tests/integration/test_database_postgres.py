"""What only PostgreSQL has: other clients, deadlocks, and a server that may go away."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.limits import DatabaseLimits
from corral.database.tables import idempotency_keys
from corral.kernel.errors import InvalidSpec, StoreUnavailable


def row(key: str) -> dict[str, Any]:
    return {"tenant": "acme", "key": key, "request": "", "task_ids": b"[]", "created_s": 0.0}


async def add(database: Database, *keys: str) -> None:
    await database.write(lambda connection: connection.execute(insert(idempotency_keys), [row(key) for key in keys]))


async def count_up(connection: AsyncConnection, key: str) -> None:
    counter = idempotency_keys.c.created_s
    await connection.execute(
        update(idempotency_keys).where(idempotency_keys.c.key == key).values(created_s=counter + 1)
    )


async def counters(connection: AsyncConnection) -> list[float]:
    return list((await connection.execute(select(idempotency_keys.c.created_s))).scalars())


async def test_a_deadlock_is_solved_by_trying_again(postgres_database_url: str) -> None:
    both_hold_one = asyncio.Barrier(2)
    tries: list[str] = []

    async def cross(connection: AsyncConnection, first: str, second: str) -> None:
        tries.append(first)
        await count_up(connection, first)
        if tries.count(first) == 1:
            await both_hold_one.wait()
        await count_up(connection, second)

    async with Database.open(postgres_database_url) as database:
        await add(database, "a", "b")
        async with asyncio.TaskGroup() as group:
            group.create_task(database.write(lambda connection: cross(connection, "a", "b")))
            group.create_task(database.write(lambda connection: cross(connection, "b", "a")))

        assert len(tries) == 3
        assert await database.read(counters) == [2.0, 2.0]


async def test_a_deadlock_that_never_ends_is_given_up(postgres_database_url: str) -> None:
    async def unlucky(connection: AsyncConnection) -> None:
        tries.append(1)
        await connection.exec_driver_sql("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40P01'; END $$")

    tries: list[int] = []
    async with Database.open(postgres_database_url, DatabaseLimits(attempts=3)) as database:
        with pytest.raises(StoreUnavailable):
            await database.write(unlucky)

    assert len(tries) == 3


async def test_connections_that_the_server_dropped_cost_nobody_an_error(postgres_database_url: str) -> None:
    async with Database.open(postgres_database_url) as database, Database.open(postgres_database_url) as another:
        await add(database, "a")
        await database.read(counters)
        await another.write(
            lambda connection: connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )

        await add(database, "b")
        assert await database.read(counters) == [0.0, 0.0]


async def test_a_connection_that_breaks_during_a_write_is_a_clear_error(postgres_database_url: str) -> None:
    async def suicide(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    async with Database.open(postgres_database_url) as database:
        with pytest.raises(StoreUnavailable):
            await database.write(suicide)

        await add(database, "a")


async def test_a_server_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(StoreUnavailable):
        async with Database.open("postgresql://corral@127.0.0.1:1/corral", DatabaseLimits(connect_timeout_s=5.0)):
            pass


async def test_a_database_that_is_not_there_is_a_clear_error(postgres_url: str) -> None:
    with pytest.raises(StoreUnavailable, match="does not exist"):
        async with Database.open(postgres_url.replace("/postgres?", "/absent?")):
            pass


async def test_text_with_a_nul_does_not_fit(postgres_database_url: str) -> None:
    async with Database.open(postgres_database_url) as database:
        with pytest.raises(InvalidSpec, match="does not fit"):
            await add(database, "nul \0")
