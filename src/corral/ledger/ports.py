"""The ports of the ledger.

The audit row of a run is written in the transaction of the run's resolution, so those methods take the open
connection; a security event must never delay or fail a refusal, so it goes through ``SecurityLog``.
"""

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from corral.ledger.model import AuditEntry, AuditLog, AuditRow, Page, SecurityEntry, SecurityEvent


class AuditRows(Protocol):
    """Audit rows in a database."""

    async def add(self, connection: AsyncConnection, rows: Sequence[AuditRow]) -> None:
        """Write rows; a run that has one already keeps it."""
        ...

    async def add_logs(self, connection: AsyncConnection, logs: Sequence[AuditLog]) -> None:
        """Name the logs of runs that have a row; one without a row, or whose row names a log, is left as it is."""
        ...

    async def of_task(self, connection: AsyncConnection, tenant: str | None, task_id: str) -> Sequence[AuditRow]:
        """The runs of a task, oldest first; also after the task was forgotten. None: of whatever tenant."""
        ...

    async def page(self, connection: AsyncConnection, tenant: str | None, page: Page) -> Sequence[AuditEntry]:
        """Newest first; of all tenants when ``tenant`` is None. Raises InvalidSpec for an absurd page."""
        ...

    async def forget(self, connection: AsyncConnection, *, before_s: float, limit: int) -> int:
        """Remove at most ``limit`` rows resolved before an instant; how many."""
        ...


class SecurityEvents(Protocol):
    """Security events in a database."""

    async def add(self, connection: AsyncConnection, events: Sequence[SecurityEvent]) -> None:
        """Write events."""
        ...

    async def page(self, connection: AsyncConnection, tenant: str | None, page: Page) -> Sequence[SecurityEntry]:
        """Newest first; of all tenants, and of callers that proved none, when ``tenant`` is None."""
        ...

    async def forget(self, connection: AsyncConnection, *, before_s: float, limit: int) -> int:
        """Remove at most ``limit`` events before an instant; how many."""
        ...


class SecurityLog(Protocol):
    """Where every component tells its refusals."""

    def record_nowait(self, event: SecurityEvent) -> None:
        """Take the event; never waits, never raises."""
        ...
