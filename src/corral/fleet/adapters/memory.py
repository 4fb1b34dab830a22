"""Workers in memory, for tests; passes the tables' contract suite."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from corral.fleet.model import WorkerPhase
from corral.fleet.ports import WorkerRow


class MemoryWorkerTable:
    """See ``WorkerTable``."""

    def __init__(self) -> None:
        self.rows: dict[str, WorkerRow] = {}

    async def load(self) -> Sequence[WorkerRow]:
        return [self.rows[worker_id] for worker_id in sorted(self.rows)]

    async def join(self, row: WorkerRow) -> WorkerRow | None:
        before = self.rows.get(row.life.worker_id)
        drain = before.life.drain_asked if before is not None else row.life.drain_asked
        turn = before.life.turn + 1 if before is not None else 1
        self.rows[row.life.worker_id] = replace(row, life=replace(row.life, turn=turn, drain_asked=drain))
        return before

    async def save(self, rows: Sequence[WorkerRow]) -> None:
        for row in rows:
            kept = self.rows.get(row.life.worker_id)
            if kept is not None and kept.life.turn == row.life.turn:
                life = replace(row.life, drain_asked=kept.life.drain_asked)
                self.rows[row.life.worker_id] = replace(row, life=life)

    async def ask_drain(self, worker_id: str, *, drain: bool) -> None:
        if worker_id in self.rows:
            row = self.rows[worker_id]
            self.rows[worker_id] = replace(row, life=replace(row.life, drain_asked=drain))

    async def delete(self, worker_ids: Collection[str]) -> None:
        for worker_id in worker_ids:
            if worker_id in self.rows and self.rows[worker_id].life.phase is WorkerPhase.EVICTED:
                del self.rows[worker_id]
