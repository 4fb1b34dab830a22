"""The index in the database."""

from sqlalchemy import ColumnElement, and_, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.statements import insert_new
from corral.database.tables import cache_entries as table
from corral.doors.http_cache.ports import Entry
from corral.kernel.digest import Digest


class SqlEntries:
    """See ``ports.Entries``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant: str, name: str) -> Entry | None:
        async def query(connection: AsyncConnection) -> Entry | None:
            wanted = select(table.c.digest, table.c.stored_s, table.c.used_s).where(_named(tenant, name))
            row = (await connection.execute(wanted)).one_or_none()
            return Entry(Digest.parse(row.digest), row.stored_s, row.used_s) if row is not None else None

        return await self._database.read(query)

    async def put(self, tenant: str, name: str, entry: Entry) -> None:
        async def write(connection: AsyncConnection) -> None:
            values = {"digest": str(entry.digest), "stored_s": entry.stored_s, "used_s": entry.used_s}
            replaced = await connection.execute(update(table).where(_named(tenant, name)).values(**values))
            if not replaced.rowcount:
                # Of two who are the first at once, either may win: both were told to replace the other.
                await connection.execute(insert_new(connection, table), {"tenant": tenant, "name": name, **values})

        await self._database.write(write)

    async def touch(self, tenant: str, name: str, *, used_s: float) -> None:
        async def write(connection: AsyncConnection) -> None:
            await connection.execute(update(table).where(_named(tenant, name)).values(used_s=used_s))

        await self._database.write(write)

    async def remove(self, tenant: str, name: str, *, digest: Digest | None = None) -> bool:
        async def write(connection: AsyncConnection) -> bool:
            gone = delete(table).where(_named(tenant, name))
            if digest is not None:
                gone = gone.where(table.c.digest == str(digest))
            return (await connection.execute(gone)).rowcount > 0

        return await self._database.write(write)

    async def forget(self, *, before_s: float, limit: int) -> int:
        async def write(connection: AsyncConnection) -> int:
            oldest = select(table.c.tenant, table.c.name).where(table.c.used_s < before_s).limit(limit)
            chosen = (await connection.execute(oldest)).all()
            if chosen:
                key = tuple_(table.c.tenant, table.c.name)
                await connection.execute(delete(table).where(key.in_([tuple(row) for row in chosen])))
            return len(chosen)

        return await self._database.write(write)


def _named(tenant: str, name: str) -> ColumnElement[bool]:
    return and_(table.c.tenant == tenant, table.c.name == name)
