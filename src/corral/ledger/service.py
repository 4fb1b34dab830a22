"""The ledger's shell: takes security events without waiting, writes them in batches, answers questions.

A refusal never waits for the disk and never fails because the ledger did. Each event leaves one structured log line at
once; the row follows within ``flush_s``. When the database cannot keep up, the oldest events that wait are
counted and dropped (their log lines stand), and one event tells how many.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

from corral.database.engine import Database
from corral.kernel.clock import Clock
from corral.kernel.concurrency import background, finish
from corral.kernel.errors import CorralError
from corral.ledger.limits import LedgerLimits
from corral.ledger.machine import cleaned
from corral.ledger.model import AuditEntry, AuditRow, Page, SecurityEntry, SecurityEvent
from corral.ledger.ports import AuditRows, SecurityEvents

_log = structlog.get_logger("corral.security")
_RETRY_FIRST_S: Final = 1.0
_RETRY_LAST_S: Final = 30.0
_RETRY_CLOSING_S: Final = 0.1


class Ledger:
    """One per scheduler. Made by :meth:`open`."""

    def __init__(
        self, database: Database, clock: Clock, limits: LedgerLimits, rows: AuditRows, events: SecurityEvents
    ) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits
        self._rows = rows
        self._events = events
        self._waiting: deque[SecurityEvent] = deque()
        self._arrived = asyncio.Event()
        self._dropped = 0
        self._closing = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database: Database, clock: Clock, limits: LedgerLimits, rows: AuditRows, events: SecurityEvents
    ) -> "AsyncIterator[Ledger]":
        """Start writing and forgetting; at the end, what still waits is written within ``close_s``."""
        ledger = cls(database, clock, limits, rows, events)
        async with (
            background(ledger._forget_forever(), name="ledger-forget"),
            background(ledger._write_forever(), name="security-events") as writing,
        ):
            try:
                yield ledger
            finally:
                ledger._closing = True
                ledger._arrived.set()
                with suppress(TimeoutError):  # what is not written by then stands in the log
                    await finish(_ended(writing), within_s=limits.close_s)

    def record_nowait(self, event: SecurityEvent) -> None:
        """Log the event and queue it for the database; never waits, never raises."""
        event = cleaned(event)
        _log.warning(
            event.kind,
            component=event.component,
            tenant=event.tenant,
            actor=event.actor,
            reason=event.reason,
            request_id=event.request_id,
            facts=event.facts,
        )
        if len(self._waiting) >= self._limits.events_waiting:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(event)
        self._arrived.set()

    async def flush(self) -> None:
        """Write everything that waits. Raises StoreUnavailable; then it still waits. Cancellation: as ``write``."""
        while self._waiting or self._dropped:
            await self._write_batch()

    async def runs_of_task(self, tenant: str | None, task_id: str) -> Sequence[AuditRow]:
        """The audit rows of a task, oldest run first; of whatever tenant for None."""
        return await self._database.read(lambda connection: self._rows.of_task(connection, tenant, task_id))

    async def audit_page(self, tenant: str | None, page: Page) -> Sequence[AuditEntry]:
        """Audit rows, newest first; of all tenants for None."""
        return await self._database.read(lambda connection: self._rows.page(connection, tenant, page))

    async def security_page(self, tenant: str | None, page: Page) -> Sequence[SecurityEntry]:
        """Security events, newest first; of all tenants for None."""
        return await self._database.read(lambda connection: self._events.page(connection, tenant, page))

    async def forget_old(self, *, limit: int = 1000) -> int:
        """Remove what is older than ``keep_s``, at most ``limit`` of each kind; how many."""
        before_s = self._clock.now_s() - self._limits.keep_s
        rows = await self._database.write(lambda c: self._rows.forget(c, before_s=before_s, limit=limit))
        return rows + await self._database.write(lambda c: self._events.forget(c, before_s=before_s, limit=limit))

    async def _write_forever(self) -> None:
        """Write what arrives, trying again while the database fails; ends when closing and nothing waits."""
        pause_s = self._limits.flush_s
        while not self._closing or self._waiting:
            await self._wait_arrived()
            await self._pause(pause_s)
            try:
                await self.flush()
            except CorralError as error:
                _log.error("security-events-not-written", code=error.code, error=str(error), count=len(self._waiting))
                self._arrived.set()  # they still wait
                pause_s = min(max(_RETRY_FIRST_S, pause_s * 2), _RETRY_LAST_S)
                if self._closing:
                    await asyncio.sleep(_RETRY_CLOSING_S)
            else:
                pause_s = self._limits.flush_s

    async def _forget_forever(self) -> None:
        while True:
            await asyncio.sleep(self._limits.forget_every_s)
            try:
                while await self.forget_old():
                    pass  # in bounded steps, so that other writes come in between
            except CorralError as error:
                _log.error("ledger-not-tidied", code=error.code, error=str(error))

    async def _wait_arrived(self) -> None:
        await self._arrived.wait()
        self._arrived.clear()

    async def _pause(self, seconds: float) -> None:
        """Let further events arrive; not when closing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._closing:
                    await self._wait_arrived()

    async def _write_batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(self._limits.batch, len(self._waiting)))]
        dropped, self._dropped = self._dropped, 0
        events = [*batch, _told_of_dropped(dropped, self._clock.now_s())] if dropped else batch
        try:
            await self._database.write(lambda connection: self._events.add(connection, events))
        except CorralError:
            self._waiting.extendleft(reversed(batch))
            self._dropped += dropped
            raise


def _told_of_dropped(count: int, now_s: float) -> SecurityEvent:
    return SecurityEvent(
        at_s=now_s,
        component="ledger",
        kind="events-dropped",
        reason=f"{count} security events came faster than the database took them; they stand in the process's log only",
        facts={"count": count},
    )


async def _ended(task: "asyncio.Task[None]") -> None:
    await asyncio.wait({task})
