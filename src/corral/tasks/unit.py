"""One transaction's worth of transitions: step the machine on many records, then write everything in batches.

Lives, stories, artifacts and audit rows of the same steps are written in one transaction, and each table is touched
once, however many tasks took part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from corral.ledger.adapters.sql import SqlAuditRows
from corral.ledger.model import AuditLog, AuditRow
from corral.tasks import machine
from corral.tasks.adapters import sql
from corral.tasks.audit import audit_row
from corral.tasks.events import (
    AbortRun,
    AmendAudit,
    Effect,
    Event,
    ForgetTask,
    RecordEvent,
    TellDependents,
    WakeClaimers,
    WriteAudit,
)
from corral.tasks.model import Artifact

_AUDIT: Final = SqlAuditRows()


@dataclass(slots=True)
class UnitOfWork:
    """Steps taken at ``now_s`` and what they ask for. Made inside a transaction, flushed once at its end.

    After the commit, the flags say whom to wake: ``claimers`` (a run is pending), ``dependents`` (a task that waits
    became due), ``aborts`` (workers must kill runs), ``changed`` (anything).
    """

    now_s: float
    claimers: bool = False
    dependents: bool = False
    aborts: bool = False
    _changed: dict[str, sql.Record] = field(default_factory=dict)
    _new: list[sql.Record] = field(default_factory=list)
    _events: list[sql.NewEvent] = field(default_factory=list)
    _artifacts: list[tuple[sql.Record, int, Sequence[Artifact]]] = field(default_factory=list)
    _audit: list[AuditRow] = field(default_factory=list)
    _audit_logs: list[AuditLog] = field(default_factory=list)
    _resolved: list[str] = field(default_factory=list)
    _forgotten: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """True when a story got longer."""
        return bool(self._events)

    def add(self, record: sql.Record, effects: Sequence[Effect]) -> None:
        """A task that was just submitted."""
        self._new.append(record)
        self._collect(record, effects)

    def step(self, record: sql.Record, event: Event) -> None:
        """Give the record its next life. Raises what ``machine.step`` raises; then nothing was changed."""
        after, effects = machine.step(record.life, event, now_s=self.now_s)
        if after is not record.life:
            record.life = after
            self._changed[record.id] = record
        self._collect(record, effects)

    def touch(self, record: sql.Record) -> None:
        """Write the record although nothing changed: its place in the index may be older than its life."""
        self._changed[record.id] = record

    async def flush(self, connection: AsyncConnection) -> None:
        """Write all of it."""
        forgotten = set(self._forgotten)
        writes = sql.Writes(
            new=self._new,
            changed=[record for record in self._changed.values() if record.id not in forgotten],
            events=[event for event in self._events if event.task_id not in forgotten],
            artifacts=self._artifacts,
        )
        await sql.write(connection, writes)
        if self._audit:
            await _AUDIT.add(connection, self._audit)
        if self._audit_logs:
            await _AUDIT.add_logs(connection, self._audit_logs)
        if self._resolved:
            self.dependents = await sql.mark_dependents(connection, sorted(self._resolved), self.now_s)
        if forgotten:
            await sql.forget(connection, sorted(forgotten))

    def _collect(self, record: sql.Record, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case RecordEvent():
                    self._events.append(self._line(record, effect))
                case WakeClaimers():
                    self.claimers = True
                case TellDependents():
                    self._resolved.append(record.id)
                case AbortRun():
                    self.aborts = True
                case WriteAudit():
                    run, report = record.life.runs[effect.run], effect.report
                    asked = record.definition if report is None or not report.argv else None
                    self._audit.append(audit_row(record.tenant, record.id, effect.run, run, report, asked))
                    if effect.report is not None and effect.report.artifacts:
                        self._artifacts.append((record, effect.run, effect.report.artifacts))
                case AmendAudit():
                    run = record.life.runs[effect.run]
                    self._audit_logs.append(
                        AuditLog(task_id=record.id, run=effect.run, log=run.log, log_bytes=run.log_bytes)
                    )
                case ForgetTask():
                    self._forgotten.append(record.id)

    def _line(self, record: sql.Record, effect: RecordEvent) -> sql.NewEvent:
        return sql.NewEvent(
            task_id=record.id,
            tenant=record.tenant,
            at_s=self.now_s,
            kind=effect.kind,
            text=effect.text,
            run=effect.run,
            worker=effect.worker,
            facts=effect.facts,
        )
