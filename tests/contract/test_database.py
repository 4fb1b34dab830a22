"""What ``Database`` promises, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.batch import ManyRows, execute_batches
from corral.database.engine import Database
from corral.database.limits import DatabaseLimits
from corral.database.statements import insert_new
from corral.database.tables import artifacts, idempotency_keys
from corral.kernel.errors import Conflict, CorralError, InvalidSpec, QueueFull, StoreUnavailable

Write = Callable[[AsyncConnection], Awaitable[str]]


def row(key: str, tenant: str = "acme", created_s: float = 1.0) -> dict[str, Any]:
    return {"tenant": tenant, "key": key, "request": "", "task_ids": b"[]", "created_s": created_s}


def adding(key: str, *, then: BaseException | None = None) -> Write:
    """A write that adds one row, and may fail afterwards."""

    async def write(connection: AsyncConnection) -> str:
        await connection.execute(insert(idempotency_keys), row(key))
        if then is not None:
            raise then
        return key

    return write


async def keys(connection: AsyncConnection) -> list[str]:
    return list((await connection.execute(select(idempotency_keys.c.key).order_by(idempotency_keys.c.key))).scalars())


async def failure(work: Awaitable[object]) -> BaseException | None:
    try:
        await work
    except (CorralError, KeyError) as error:
        return error
    return None


async def test_a_write_gives_its_value_and_is_there_for_everybody(database: Database, database_url: str) -> None:
    assert await database.write(adding("a")) == "a"

    assert await database.read(keys) == ["a"]
    async with Database.open(database_url) as another:
        assert await another.read(keys) == ["a"]


async def test_a_write_that_fails_leaves_nothing_and_its_error_unchanged(database: Database) -> None:
    error = KeyError("ours")

    with pytest.raises(KeyError) as raised:
        await database.write(adding("a", then=error))

    assert raised.value is error
    assert await database.read(keys) == []


async def test_of_many_writes_at_once_exactly_the_failing_ones_leave_nothing(database: Database) -> None:
    names = [f"{number:03}" for number in range(90)]
    async with asyncio.TaskGroup() as group:
        for number, name in enumerate(names):
            then = KeyError(name) if number % 3 == 0 else None
            group.create_task(failure(database.write(adding(name, then=then))))

    assert await database.read(keys) == [name for number, name in enumerate(names) if number % 3]


async def test_a_taken_key_is_a_conflict_for_its_writer_alone(database: Database) -> None:
    await database.write(adding("a"))

    async with asyncio.TaskGroup() as group:
        outcomes = [group.create_task(failure(database.write(adding(key)))) for key in ("b", "a", "c")]

    assert [type(each.result()) for each in outcomes] == [type(None), Conflict, type(None)]
    assert await database.read(keys) == ["a", "b", "c"]


async def test_a_reference_to_nothing_is_a_conflict(database: Database) -> None:
    orphan = {name: "" for name in artifacts.c.keys()} | {"run": 0, "size_bytes": 0, "executable": False}

    with pytest.raises(Conflict):
        await database.write(lambda connection: connection.execute(insert(artifacts), orphan))


async def test_a_missing_value_is_a_defect_of_ours(database: Database) -> None:
    with pytest.raises(CorralError) as raised:
        await database.write(
            lambda connection: connection.execute(insert(idempotency_keys), row("a") | {"request": None})
        )

    assert raised.value.code == "internal"


async def test_a_statement_that_makes_no_sense_is_a_defect_of_ours(database: Database) -> None:
    with pytest.raises(CorralError) as raised:
        await database.read(lambda connection: connection.exec_driver_sql("SELECT nothing FROM nowhere"))

    assert raised.value.code == "internal"


@pytest.mark.parametrize("value", [{"key": "\ud800"}, {"created_s": 10**400}], ids=["surrogate", "number"])
async def test_a_value_that_does_not_fit_is_the_callers_mistake(database: Database, value: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="does not fit"):
        await database.write(lambda connection: connection.execute(insert(idempotency_keys), row("a") | value))

    assert await database.write(adding("b")) == "b"


async def test_a_size_beyond_64_bits_is_the_callers_mistake(database: Database) -> None:
    with pytest.raises(InvalidSpec, match="does not fit"):
        await database.read(lambda c: c.execute(select(artifacts).where(artifacts.c.size_bytes == 2**64)))


async def test_a_new_row_is_passed_over_when_its_key_is_taken(database: Database) -> None:
    async def add(connection: AsyncConnection) -> None:
        await connection.execute(insert_new(connection, idempotency_keys), [row("a"), row("b", created_s=2.0)])

    await database.write(adding("b"))
    await database.write(add)

    query = select(func.sum(idempotency_keys.c.created_s))
    assert await database.read(keys) == ["a", "b"]
    assert (await database.read(lambda c: c.execute(query))).scalar_one() == 2.0


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StoreUnavailable, match=r"read-?only"):
        await database.read(adding("a"))

    assert await database.read(keys) == []


async def test_a_read_sees_one_moment_although_others_write(database: Database) -> None:
    async def look_twice(connection: AsyncConnection) -> tuple[list[str], list[str]]:
        first = await keys(connection)
        await database.write(adding("b"))
        return first, await keys(connection)

    await database.write(adding("a"))

    assert await database.read(look_twice) == (["a"], ["a"])
    assert await database.read(keys) == ["a", "b"]


async def test_a_read_does_not_wait_for_a_write_and_does_not_see_half_of_it(database: Database) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(connection: AsyncConnection) -> None:
        await adding("a")(connection)
        begun.set()
        await may_end.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(database.write(slow))
        await begun.wait()
        assert await database.read(keys) == []
        may_end.set()

    assert await database.read(keys) == ["a"]


async def test_a_canceled_write_happens_entirely_or_not_at_all(database: Database) -> None:
    def both(name: str) -> Write:
        async def write(connection: AsyncConnection) -> str:
            await adding(f"{name}-1")(connection)
            return await adding(f"{name}-2")(connection)

        return write

    async with asyncio.TaskGroup() as group:
        for number in range(60):
            task = group.create_task(database.write(both(f"{number:02}")))
            for _ in range(number):
                await asyncio.sleep(0)  # cancel each at another point of its life
            task.cancel()

    await database.write(adding("last"))
    found = await database.read(keys)
    halves = [key.removesuffix("-1").removesuffix("-2") for key in found if key != "last"]
    assert all(halves.count(half) == 2 for half in halves)


async def test_a_write_that_takes_too_long_is_undone_and_the_next_one_works(database_url: str) -> None:
    async def endless(connection: AsyncConnection) -> None:
        await adding("a")(connection)
        await asyncio.Event().wait()

    async with Database.open(database_url, DatabaseLimits(write_timeout_s=0.2)) as database:
        with pytest.raises(StoreUnavailable):
            await database.write(endless)

        await database.write(adding("b"))
        assert await database.read(keys) == ["b"]


async def test_one_write_more_than_may_wait_is_refused(database_url: str) -> None:
    async with Database.open(database_url, DatabaseLimits(writes_waiting=3, writers=1)) as database:
        async with asyncio.TaskGroup() as group:
            outcomes = [group.create_task(failure(database.write(adding(str(number))))) for number in range(10)]

        refused = [each.result() for each in outcomes if each.result() is not None]
        assert [type(each) for each in refused] == [QueueFull] * 7
        assert len(await database.read(keys)) == 3


async def test_writes_that_wait_when_the_database_is_closed_are_carried_out(database_url: str) -> None:
    async with asyncio.TaskGroup() as group:
        async with Database.open(database_url) as database:
            writes = [group.create_task(failure(database.write(adding(f"{number:02}")))) for number in range(20)]
            await asyncio.sleep(0)
            if not database.url.is_sqlite:
                await asyncio.wait(writes)

    assert [each.result() for each in writes] == [None] * 20
    async with Database.open(database_url) as database:
        assert len(await database.read(keys)) == 20


async def test_a_closed_database_refuses_writes(sqlite_url: str) -> None:
    async with Database.open(sqlite_url) as database:
        pass

    with pytest.raises(StoreUnavailable, match="closed"):
        await database.write(adding("a"))


async def test_the_blocks_own_error_leaves_the_database_unchanged(database_url: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Database.open(database_url):
            raise KeyError("mine")


async def test_many_writers_of_one_row_lose_no_update(database: Database) -> None:
    async def count_up(connection: AsyncConnection) -> None:
        query = select(idempotency_keys.c.created_s).where(idempotency_keys.c.key == "n").with_for_update()
        found = (await connection.execute(query)).scalar_one()
        await connection.execute(update(idempotency_keys).values(created_s=found + 1.0))

    await database.write(lambda c: c.execute(insert(idempotency_keys), row("n", created_s=0.0)))
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(database.write(count_up))

    assert (await database.read(lambda c: c.execute(select(idempotency_keys.c.created_s)))).scalar_one() == 50.0


async def test_it_answers(database: Database) -> None:
    await database.wait_answering()


async def test_batches_of_rows_are_part_of_the_write_that_sends_them(database: Database) -> None:
    many = ManyRows(insert(idempotency_keys), list(row("a")))

    async def add(connection: AsyncConnection, *names: str, then: BaseException | None = None) -> None:
        await execute_batches(connection, [(many, [row(name) for name in names]), (many, [])])
        if then is not None:
            raise then

    await database.write(lambda c: add(c, "a", "b"))
    async with asyncio.TaskGroup() as group:
        failed = group.create_task(failure(database.write(lambda c: add(c, "c", then=KeyError("undone")))))
        taken = group.create_task(failure(database.write(lambda c: add(c, "d", "a"))))

    assert await database.read(keys) == ["a", "b"]
    assert (type(failed.result()), type(taken.result())) == (KeyError, Conflict)
