"""Whose run a worker speaks of."""

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.kernel.errors import Conflict
from corral.tasks.adapters import sql
from corral.tasks.ports import RunRef

TenantOfRun = Callable[[str, RunRef], Awaitable[str]]
"""``(worker_id, ref)`` → the run's tenant; raises Conflict when the run is not, and never was, that worker's."""


def tenant_of_run(database: Database) -> TenantOfRun:
    """Look in the database. A run that has ended is still its worker's: the last of its log may be on the way."""

    async def look(worker_id: str, ref: RunRef) -> str:
        async def query(connection: AsyncConnection) -> str | None:
            record = (await sql.load(connection, [ref.task_id], locked=False)).get(ref.task_id)
            if record is None or ref.run >= len(record.life.runs):
                return None
            run = record.life.runs[ref.run]
            return record.tenant if (run.worker, run.token) == (worker_id, ref.token) else None

        tenant = await database.read(query)
        if tenant is None:
            raise Conflict(f"run {ref.run} of {ref.task_id} is not held by this worker")
        return tenant

    return look
