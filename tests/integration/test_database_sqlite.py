"""What only SQLite has: one file, one writer, group commit, and a process that may die at any moment."""

import asyncio
import os
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.limits import DatabaseLimits
from corral.database.sqlite_thread import SqliteConnection
from corral.database.statements import insert_new
from corral.database.tables import idempotency_keys
from corral.kernel.errors import CorralError, DatabaseCorrupt, QuotaExceeded, StoreUnavailable


def row(key: str, request: str = "") -> dict[str, Any]:
    return {"tenant": "acme", "key": key, "request": request, "task_ids": b"[]", "created_s": 1.0}


async def add(database: Database, key: str, request: str = "") -> None:
    await database.write(lambda connection: connection.execute(insert(idempotency_keys), row(key, request)))


async def keys(connection: AsyncConnection) -> list[str]:
    return list((await connection.execute(select(idempotency_keys.c.key).order_by(idempotency_keys.c.key))).scalars())


async def journal_mode(connection: AsyncConnection) -> str:
    return str((await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one())


async def thread_of(connection: AsyncConnection) -> SqliteConnection:
    return cast(SqliteConnection, (await connection.get_raw_connection()).driver_connection)


async def test_writes_at_once_share_one_commit(sqlite_url: str) -> None:
    statements: list[str] = []

    async def watch(connection: AsyncConnection) -> None:
        thread = await thread_of(connection)
        await thread.run(lambda: thread.raw.set_trace_callback(statements.append))

    async with Database.open(sqlite_url, DatabaseLimits(batch=100)) as database:
        await database.write(watch)
        statements.clear()
        async with asyncio.TaskGroup() as group:
            for number in range(250):
                group.create_task(add(database, f"{number:03}"))

        assert statements.count("COMMIT") == 3
        assert len(await database.read(keys)) == 250


async def test_a_commit_is_flushed_to_the_disk(sqlite_url: str) -> None:
    async def settings(connection: AsyncConnection) -> list[Any]:
        names = ("synchronous", "journal_mode", "foreign_keys")
        return [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in names]

    async with Database.open(sqlite_url) as database:
        assert await database.write(settings) == [2, "wal", 1]  # 2 is FULL


KILLED_WRITER = """
import asyncio, sys
from sqlalchemy import insert
from corral.database.engine import Database
from corral.database.statements import insert_new
from corral.database.tables import idempotency_keys

async def main() -> None:
    async with Database.open(sys.argv[1]) as database, asyncio.TaskGroup() as group:
        async def write(lane: int) -> None:
            for number in range(1_000_000):
                key = f"{lane}-{number}"
                row = dict(tenant="acme", key=key, request="", task_ids=b"[]", created_s=1.0)
                await database.write(lambda connection: connection.execute(insert(idempotency_keys), row))
                print(key, flush=True)
        for lane in range(8):
            group.create_task(write(lane))

asyncio.run(main())
"""


async def test_what_was_answered_survives_kill_minus_nine(sqlite_url: str) -> None:
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED_WRITER, sqlite_url, stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    answered = [(await writer.stdout.readline()).decode().strip() for _ in range(200)]
    writer.send_signal(signal.SIGKILL)
    answered += (await writer.stdout.read()).decode().split("\n")[:-1]  # the last line may be cut
    await writer.wait()

    async with Database.open(sqlite_url) as database:
        assert set(answered) <= set(await database.read(keys))


async def test_a_lock_of_another_process_ends_in_a_clear_error_and_then_in_success(sqlite_url: str) -> None:
    async with Database.open(sqlite_url, DatabaseLimits(busy_timeout_s=0.1)) as database:
        other = sqlite3.connect(database.url.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await add(database, "a")
        other.execute("ROLLBACK")
        other.close()

        await add(database, "b")
        assert await database.read(keys) == ["b"]


async def test_who_opens_a_new_file_waits_for_another_that_is_writing_its_first_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE first (x)")
    monkeypatch.setattr(time, "sleep", lambda _: other.execute("COMMIT"))

    async with Database.open(f"sqlite:///{path}") as database:
        assert other.in_transaction is False
        assert await database.read(journal_mode) == "wal"
    other.close()


async def test_who_opens_a_new_file_does_not_wait_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE first (x)")

    with pytest.raises(StoreUnavailable, match="locked"):
        async with Database.open(f"sqlite:///{path}", DatabaseLimits(busy_timeout_s=0.1)):
            pass
    other.close()


async def test_a_full_disk_is_told_to_its_writers_and_the_database_works_on(sqlite_url: str) -> None:
    async def limit_pages(connection: AsyncConnection) -> None:
        pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
        await connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 20}")

    async def outcome(key: str, request: str) -> str:
        try:
            await add(database, key, request)
        except CorralError as error:
            return type(error).__name__
        return "written"

    async with Database.open(sqlite_url) as database:
        await database.write(limit_pages)
        with pytest.raises(QuotaExceeded, match="disk is full") as full:
            await add(database, "large", "x" * 1_000_000)
        assert "Free space" in full.value.cure

        async with asyncio.TaskGroup() as group:
            outcomes = {key: group.create_task(outcome(key, "x" * size)) for key, size in SIZES.items()}
        await add(database, "small", "")

        written = [key for key, task in outcomes.items() if task.result() == "written"]
        assert {task.result() for task in outcomes.values()} <= {"written", "QuotaExceeded"}
        assert await database.read(keys) == sorted([*written, "small"])


SIZES = {"a": 10, "b": 1_000_000, "c": 10}


async def test_a_database_that_cannot_be_created_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="unable to open"):
        async with Database.open(f"sqlite:///{tmp_path}/absent/corral.db"):
            pass


async def test_a_damaged_file_is_a_clear_error_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "corral.db"
    path.write_bytes(b"x" * 8192)

    with pytest.raises(DatabaseCorrupt, match="damaged") as damaged:
        async with Database.open(f"sqlite:///{path}"):
            pass
    assert "backup" in damaged.value.cure


async def test_a_write_that_ends_the_shared_transaction_is_found_out(sqlite_url: str) -> None:
    async def commit_everything(connection: AsyncConnection) -> None:
        await connection.execute(insert(idempotency_keys), row("ours"))
        await (await thread_of(connection)).commit()

    async with Database.open(sqlite_url) as database:
        with pytest.raises(CorralError, match="ended the transaction"):
            await database.write(commit_everything)
        await add(database, "a")
        assert await database.read(keys) == ["a", "ours"]


async def test_an_open_and_closed_database_leaves_no_thread_and_no_file_open(sqlite_url: str) -> None:
    async def open_and_use() -> None:
        async with Database.open(sqlite_url) as database:
            async with asyncio.TaskGroup() as group:
                for number in range(10):
                    group.create_task(database.read(keys))
                    group.create_task(add_new(database, f"k{number}"))

    for _ in range(5):
        await open_and_use()

    assert (_sqlite_threads(), _open_files(sqlite_url)) == (0, 0)


async def add_new(database: Database, key: str) -> None:
    await database.write(lambda c: c.execute(insert_new(c, idempotency_keys), row(key)))


def _sqlite_threads() -> int:
    """How many are left; a closed connection's thread ends a moment after its file."""
    threads = [thread for thread in threading.enumerate() if thread.name == "sqlite"]
    for thread in threads:
        thread.join(timeout=10)
    return sum(thread.is_alive() for thread in threads)


def _open_files(url: str) -> int:
    path = url.removeprefix("sqlite:///")
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(path) for link in links if os.path.lexists(link))
