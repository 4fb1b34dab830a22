"""The ledger in the database. ``facts`` holds the whole row; the columns beside it repeat what is searched for."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Table, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.batch import execute_batches
from corral.database.statements import many_new
from corral.database.tables import audit, security_events
from corral.kernel.errors import InvalidSpec
from corral.ledger.model import AuditEntry, AuditLog, AuditRow, Fact, Page, SecurityEntry, SecurityEvent

PAGE_MAX: Final = 1000
_SEQ_MAX: Final = 2**63 - 1
_ADD: Final = many_new(audit, [name for name in audit.c.keys() if name != "seq"])
_AMEND: Final = update(audit).where(audit.c.seq == bindparam("b_seq")).values(facts=bindparam("b_facts"))


class SqlAuditRows:
    """See ``ports.AuditRows``."""

    async def add(self, connection: AsyncConnection, rows: Sequence[AuditRow]) -> None:
        if rows:
            await execute_batches(connection, [(_ADD[connection.dialect.name], [_audit_columns(row) for row in rows])])

    async def add_logs(self, connection: AsyncConnection, logs: Sequence[AuditLog]) -> None:
        by_run = {(log.task_id, log.run): log for log in logs}
        wanted = audit.c.task_id.in_(sorted({log.task_id for log in logs}))
        found = await connection.execute(select(audit.c.seq, audit.c.facts).where(wanted).with_for_update())
        amended = []
        for seq, facts in found:
            row = _decode_audit(facts)
            log = by_run.get((row.task_id, row.run))
            if log is not None and not row.log:
                row = msgspec.structs.replace(row, log=log.log, log_bytes=log.log_bytes)
                amended.append({"b_seq": seq, "b_facts": msgspec.json.encode(row)})
        if amended:
            await connection.execute(_AMEND, amended)

    async def of_task(self, connection: AsyncConnection, tenant: str | None, task_id: str) -> Sequence[AuditRow]:
        query = select(audit.c.facts).where(audit.c.task_id == task_id).order_by(audit.c.run).limit(PAGE_MAX)
        if tenant is not None:
            query = query.where(audit.c.tenant == tenant)
        return [_decode_audit(facts) for facts in (await connection.execute(query)).scalars()]

    async def page(self, connection: AsyncConnection, tenant: str | None, page: Page) -> Sequence[AuditEntry]:
        rows = await _newest(connection, audit, [audit.c.seq, audit.c.facts], tenant, page)
        return [AuditEntry(seq=row.seq, row=_decode_audit(row.facts)) for row in rows]

    async def forget(self, connection: AsyncConnection, *, before_s: float, limit: int) -> int:
        return await _forget(connection, audit, audit.c.resolved_s < before_s, limit)


class SqlSecurityEvents:
    """See ``ports.SecurityEvents``."""

    async def add(self, connection: AsyncConnection, events: Sequence[SecurityEvent]) -> None:
        if events:
            await connection.execute(insert(security_events), [_event_columns(event) for event in events])

    async def page(self, connection: AsyncConnection, tenant: str | None, page: Page) -> Sequence[SecurityEntry]:
        rows = await _newest(connection, security_events, list(security_events.c), tenant, page)
        return [SecurityEntry(seq=row.seq, event=_event(row)) for row in rows]

    async def forget(self, connection: AsyncConnection, *, before_s: float, limit: int) -> int:
        return await _forget(connection, security_events, security_events.c.at_s < before_s, limit)


async def _newest(
    connection: AsyncConnection, table: Table, columns: Sequence[Any], tenant: str | None, page: Page
) -> Sequence[Any]:
    if not 1 <= page.limit <= PAGE_MAX:
        raise InvalidSpec(f"limit: a page has 1 to {PAGE_MAX} entries, not {page.limit}", field="limit")
    query = select(*columns).order_by(table.c.seq.desc()).limit(page.limit)
    if page.before is not None:
        if not 0 <= page.before <= _SEQ_MAX:
            raise InvalidSpec(f"before: {page.before} is not the number of an entry", field="before")
        query = query.where(table.c.seq < page.before)
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    return (await connection.execute(query)).all()


async def _forget(connection: AsyncConnection, table: Table, condition: Any, limit: int) -> int:
    oldest = select(table.c.seq).where(condition).order_by(table.c.seq).limit(limit)
    return (await connection.execute(delete(table).where(table.c.seq.in_(oldest)))).rowcount


def _audit_columns(row: AuditRow) -> dict[str, Any]:
    return {
        "task_id": row.task_id,
        "run": row.run,
        "tenant": row.tenant,
        "phase": row.phase,
        "worker_id": row.worker_id,
        "resolved_s": row.resolved_s,
        "facts": msgspec.json.encode(row),
    }


def _decode_audit(facts: bytes) -> AuditRow:
    return msgspec.json.decode(facts, type=AuditRow)


def _event_columns(event: SecurityEvent) -> dict[str, Any]:
    return {
        "at_s": event.at_s,
        "tenant": event.tenant,
        "component": event.component,
        "kind": event.kind,
        "actor": event.actor,
        "reason": event.reason,
        "request_id": event.request_id,
        "facts": msgspec.json.encode(event.facts),
    }


def _event(row: Any) -> SecurityEvent:
    return SecurityEvent(
        at_s=row.at_s,
        tenant=row.tenant,
        component=row.component,
        kind=row.kind,
        actor=row.actor,
        reason=row.reason,
        request_id=row.request_id,
        facts=msgspec.json.decode(row.facts, type=dict[str, Fact]),
    )
