"""Where schedulers meet: in the database, and in memory for tests."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.statements import insert_new
from corral.database.tables import function_homes as homes_table
from corral.functions.adapters.news import announce
from corral.functions.homes import Home

_decode: Final = msgspec.json.Decoder(Home).decode


class SqlHomeStore:
    """See ``HomeStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def publish(self, home: Home, *, changed: bool) -> None:
        values = {"beat": home.beat, "content": msgspec.json.encode(home)}

        async def carry_out(connection: AsyncConnection) -> None:
            own = homes_table.c.scheduler == home.scheduler
            updated = await connection.execute(homes_table.update().where(own).values(**values))
            if not updated.rowcount:
                new = insert_new(connection, homes_table).values(scheduler=home.scheduler, **values)
                await connection.execute(new)
            if changed:
                await announce(connection)

        await self._database.write(carry_out)

    async def homes(self) -> Sequence[Home]:
        async def find(connection: AsyncConnection) -> list[Home]:
            return [_decode(row.content) for row in await connection.execute(sa.select(homes_table))]

        return await self._database.read(find)

    async def leave(self, schedulers: Iterable[str]) -> None:
        gone = list(schedulers)

        async def carry_out(connection: AsyncConnection) -> None:
            await connection.execute(homes_table.delete().where(homes_table.c.scheduler.in_(gone)))
            await announce(connection)

        await self._database.write(carry_out)


class MemoryHomeStore:
    """See ``HomeStore``."""

    def __init__(self) -> None:
        self.published: dict[str, Home] = {}

    async def publish(self, home: Home, *, changed: bool) -> None:
        self.published[home.scheduler] = home

    async def homes(self) -> Sequence[Home]:
        return list(self.published.values())

    async def leave(self, schedulers: Iterable[str]) -> None:
        for each in schedulers:
            self.published.pop(each, None)
