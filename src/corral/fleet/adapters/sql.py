"""Workers in the database."""

from collections.abc import Collection, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.tables import workers
from corral.fleet.machine import WorkerLife
from corral.fleet.model import Registration
from corral.fleet.ports import WorkerRow

_decode_registration: Final = msgspec.json.Decoder(Registration).decode
_decode_life: Final = msgspec.json.Decoder(WorkerLife).decode


class SqlWorkerTable:
    """The table of workers; the same on SQLite and PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> Sequence[WorkerRow]:
        """Every worker that is known, by id."""

        async def query(connection: AsyncConnection) -> list[WorkerRow]:
            found = await connection.execute(sa.select(workers).order_by(workers.c.id))
            return [
                WorkerRow(
                    registration=_decode_registration(row.registration),
                    life=_decode_life(row.life),
                    registered_s=row.registered_s,
                    seen_s=row.seen_s,
                )
                for row in found
            ]

        return await self._database.read(query)

    async def save(self, rows: Sequence[WorkerRow]) -> None:
        """Insert or replace, all or nothing."""
        values = [
            {
                "id": row.life.worker_id,
                "phase": row.life.phase.value,
                "drain": row.life.drain_asked,
                "registered_s": row.registered_s,
                "seen_s": row.seen_s,
                "registration": msgspec.json.encode(row.registration),
                "life": msgspec.json.encode(row.life),
            }
            for row in sorted(rows, key=lambda row: row.life.worker_id)
        ]

        async def replace(connection: AsyncConnection) -> None:
            await connection.execute(workers.delete().where(workers.c.id.in_([value["id"] for value in values])))
            await connection.execute(workers.insert(), values)

        if values:
            await self._database.write(replace)

    async def delete(self, worker_ids: Collection[str]) -> None:
        """Forget."""

        async def remove(connection: AsyncConnection) -> None:
            await connection.execute(workers.delete().where(workers.c.id.in_(worker_ids)))

        await self._database.write(remove)
