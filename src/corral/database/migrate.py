"""``python -m corral.database.migrate [URL]``: bring a database to this program's schema, answer in one line of JSON.

Without an argument the URL is read from standard input, where no other user of the machine sees a password.
The only module of Corral's processes that imports Alembic.
"""

import asyncio
import sys
from pathlib import Path
from typing import Final

import msgspec
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.limits import DatabaseLimits
from corral.database.version import MigrationAnswer, read_revision, refuse_newer
from corral.kernel.errors import CorralError

_LOCK_KEY: Final = 0x636F7272616C  # "corral"; any number that nobody else uses in this database
_LIMITS: Final = DatabaseLimits(write_timeout_s=3600.0, busy_timeout_s=600.0)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration over our folder of migrations, working on ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


async def upgrade(url: str) -> None:
    """Upgrade in one transaction. Raises the errors of ``version.migrate``."""

    async def carry_out(connection: AsyncConnection) -> None:
        if connection.dialect.name == "postgresql":  # SQLite's writer holds the only lock there is
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
        refuse_newer(await read_revision(connection), str(database.url))
        await connection.run_sync(lambda sync: command.upgrade(alembic_config(sync), "head"))

    async with Database.open(url, _LIMITS) as database:
        await database.write(carry_out)


def main() -> int:
    """Carry out and answer; status 0 when the database has our schema now."""
    url = sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read().strip()
    try:
        asyncio.run(upgrade(url))
    except CorralError as error:
        answer = MigrationAnswer(code=error.code, message=error.message, cure=error.cure)
    else:
        answer = MigrationAnswer()
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return 1 if answer.code else 0


if __name__ == "__main__":
    sys.exit(main())
