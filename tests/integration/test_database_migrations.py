"""Migrations and the schema page agree, on both engines; other versions are refused with the cure."""

import asyncio
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.migrate import alembic_config
from corral.database.tables import metadata
from corral.database.version import REVISIONS, check_version, migrate
from corral.kernel.errors import DatabaseCorrupt, InvalidSpec, UnsupportedVersion


def _differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


async def _set_revision(database: Database, revision: str) -> None:
    async def carry_out(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")

    await database.write(carry_out)


async def test_a_migrated_database_has_exactly_the_schema_of_the_tables_page(database: Database) -> None:
    differences = await database.read(lambda connection: connection.run_sync(_differences))

    assert differences == []


async def test_the_comparison_would_notice_a_missing_index(database: Database) -> None:
    async def drop(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("DROP INDEX ix_tasks_due_s")

    await database.write(drop)

    differences = await database.read(lambda connection: connection.run_sync(_differences))
    assert [each[0] for each in differences] == ["add_index"]


def test_the_known_revisions_are_the_files_in_the_folder() -> None:
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()

    assert [script.revision for script in scripts][::-1] == list(REVISIONS)


async def test_the_current_version_is_accepted(database: Database) -> None:
    await check_version(database)


async def test_migrating_again_changes_nothing(database_url: str) -> None:
    await migrate(database_url)

    async with Database.open(database_url) as database:
        await check_version(database)


async def test_a_database_of_a_newer_version_is_refused_with_the_cure(database: Database) -> None:
    await _set_revision(database, "9999")

    with pytest.raises(UnsupportedVersion, match=r"newer version \(9999\) than this program") as refused:
        await check_version(database)
    assert "Install the newer Corral" in refused.value.cure


async def test_migrating_a_newer_database_is_refused_with_the_cure(database: Database, database_url: str) -> None:
    await _set_revision(database, "9999")

    with pytest.raises(UnsupportedVersion, match="newer version") as refused:
        await migrate(database_url)
    assert "Install the newer Corral" in refused.value.cure


async def test_an_empty_database_must_be_upgraded_first(tmp_path: Any) -> None:
    async with Database.open(f"sqlite:///{tmp_path}/empty.db") as database:
        with pytest.raises(UnsupportedVersion, match="is empty and must be upgraded"):
            await check_version(database)


async def test_two_that_migrate_one_database_at_once_both_succeed(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/corral.db"

    async with asyncio.TaskGroup() as both:
        both.create_task(migrate(url))
        both.create_task(migrate(url))

    async with Database.open(url) as database:
        await check_version(database)


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Any) -> None:
    path = tmp_path / "corral.db"
    path.write_bytes(b"these are my holiday notes, not a database" * 100)

    with pytest.raises(DatabaseCorrupt, match="damaged"):
        await migrate(f"sqlite:///{path}")
    assert path.read_bytes().startswith(b"these are my holiday notes")


async def test_a_mistaken_url_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidSpec, match="mysql"):
        await migrate("mysql://root@localhost/corral")
