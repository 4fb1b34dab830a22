"""News between processes on one database: who writes says so, and the others look at once instead of now and then.

By LISTEN and NOTIFY of PostgreSQL. They are hints: whoever listens also looks now and then, because a connection can be
dead for a while before anybody knows. On SQLite there is one process, and nobody to tell.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import asyncpg
import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.url import DatabaseUrl

_CONNECT_S: Final = 10.0
_AGAIN_S: Final = 1.0
_log = structlog.get_logger("corral.database")


async def announce(connection: AsyncConnection, channel: str) -> None:
    """Tell all who listen, once the transaction of this connection is committed."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_notify(channel, "")))


async def listen(url: DatabaseUrl, channel: str, heard: Callable[[], None]) -> None:
    """Call ``heard`` at every announcement, until cancelled; also after every connection, since some may be missed."""
    while not url.is_sqlite:
        try:
            connection = await asyncpg.connect(url.with_password, timeout=_CONNECT_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            _log.warning("news-not-heard", channel=channel, why=str(error))
        else:
            await _hear(connection, channel, heard)
        await asyncio.sleep(_AGAIN_S)


async def _hear(connection: asyncpg.Connection, channel: str, heard: Callable[[], None]) -> None:
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    try:
        await connection.add_listener(channel, lambda *_: heard())
        heard()
        await lost.wait()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        _log.warning("news-not-heard", channel=channel, why=str(error))
    finally:
        connection.terminate()
