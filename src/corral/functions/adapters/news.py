"""How schedulers on one database hear at once what another one changed."""

from collections.abc import Callable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database import news
from corral.database.engine import Database

_CHANNEL: Final = "corral_functions"


async def announce(connection: AsyncConnection) -> None:
    """Something changed, if this transaction is committed."""
    await news.announce(connection, _CHANNEL)


class SqlNews:
    """See ``News``."""

    def __init__(self, database: Database) -> None:
        self._url = database.url

    async def listen(self, heard: Callable[[], None]) -> None:
        await news.listen(self._url, _CHANNEL, heard)
