"""News between processes on one database: who writes says so, and the others look at once instead of now and then.

By LISTEN and NOTIFY of PostgreSQL. They are hints: whoever listens also looks now and then, because a connection can be
dead for a while before anybody knows. On SQLite there is one process, and nobody to tell.
"""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.url import DatabaseUrl


async def announce(connection: AsyncConnection, channel: str) -> None:
    """Tell all who listen, once the transaction of this connection is committed."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_notify(channel, "")))


async def listen(url: DatabaseUrl, channel: str, heard: Callable[[], None]) -> None:
    """Call ``heard`` at every announcement, until cancelled; also after every connection, since some may be missed."""
    if url.is_sqlite:
        return
    # Imported by who needs it: the driver is three megabytes, and idle memory counts.
    from corral.database.postgres_news import listen_again_and_again  # noqa: PLC0415

    await listen_again_and_again(url, channel, heard)
