"""Workers in the database; the same on SQLite and PostgreSQL, for any number of schedulers."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.database.tables import workers
from corral.fleet.machine import WorkerLife
from corral.fleet.model import Registration, WorkerPhase
from corral.fleet.ports import WorkerRow

_decode_registration: Final = msgspec.json.Decoder(Registration).decode
_decode_life: Final = msgspec.json.Decoder(WorkerLife).decode
_UPDATE: Final = (
    workers.update()
    .where(workers.c.id == sa.bindparam("b_id"))
    .values({name: sa.bindparam(f"b_{name}") for name in ("phase", "registered_s", "seen_s", "registration", "life")})
)


class SqlWorkerTable:
    """See ``WorkerTable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> Sequence[WorkerRow]:
        async def query(connection: AsyncConnection) -> list[WorkerRow]:
            return [_row(found) for found in await connection.execute(sa.select(workers).order_by(workers.c.id))]

        return await self._database.read(query)

    async def join(self, row: WorkerRow) -> WorkerRow | None:
        worker_id = row.life.worker_id

        async def replace_row(connection: AsyncConnection) -> WorkerRow | None:
            before = (await _locked(connection, [worker_id])).get(worker_id)
            if before is None:
                life = replace(row.life, turn=1)
                values = {"id": worker_id, "drain": life.drain_asked, **_values(replace(row, life=life))}
                await connection.execute(workers.insert(), values)
                return None
            life = replace(row.life, turn=before.life.turn + 1)
            await connection.execute(_UPDATE, _bound(replace(row, life=life)))
            return before

        return await self._database.write(replace_row)

    async def save(self, rows: Sequence[WorkerRow]) -> None:
        async def replace_rows(connection: AsyncConnection) -> None:
            kept = await _locked(connection, [row.life.worker_id for row in rows])
            current = [
                _bound(row)
                for row in rows
                if (stored := kept.get(row.life.worker_id)) is not None and stored.life.turn == row.life.turn
            ]
            if current:
                await connection.execute(_UPDATE, current)

        if rows:
            await self._database.write(replace_rows)

    async def ask_drain(self, worker_id: str, *, drain: bool) -> None:
        statement = workers.update().where(workers.c.id == worker_id).values(drain=drain)
        await self._database.write(lambda connection: connection.execute(statement))

    async def delete(self, worker_ids: Collection[str]) -> None:
        gone = workers.c.id.in_(worker_ids), workers.c.phase == WorkerPhase.EVICTED.value
        await self._database.write(lambda connection: connection.execute(workers.delete().where(*gone)))


async def _locked(connection: AsyncConnection, worker_ids: Sequence[str]) -> dict[str, WorkerRow]:
    statement = sa.select(workers).where(workers.c.id.in_(sorted(worker_ids))).order_by(workers.c.id).with_for_update()
    return {found.id: _row(found) for found in await connection.execute(statement)}


def _row(found: Any) -> WorkerRow:
    return WorkerRow(
        registration=_decode_registration(found.registration),
        life=replace(_decode_life(found.life), drain_asked=found.drain),
        registered_s=found.registered_s,
        seen_s=found.seen_s,
    )


def _values(row: WorkerRow) -> dict[str, Any]:
    return {
        "phase": row.life.phase.value,
        "registered_s": row.registered_s,
        "seen_s": row.seen_s,
        "registration": msgspec.json.encode(row.registration),
        "life": msgspec.json.encode(row.life),
    }


def _bound(row: WorkerRow) -> dict[str, Any]:
    return {f"b_{name}": value for name, value in {"id": row.life.worker_id, **_values(row)}.items()}
