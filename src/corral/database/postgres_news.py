"""Listening for news on PostgreSQL: one connection of its own, made anew whenever it is lost."""

import asyncio
from collections.abc import Callable
from typing import Final

import asyncpg
import structlog

from corral.database.url import DatabaseUrl

_CONNECT_S: Final = 10.0
_AGAIN_S: Final = 1.0
_log = structlog.get_logger("corral.database")


async def listen_again_and_again(url: DatabaseUrl, channel: str, heard: Callable[[], None]) -> None:
    """Call ``heard`` at every announcement, until cancelled; also after every connection, since some may be missed."""
    while True:
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
