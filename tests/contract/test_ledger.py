"""The ledger's repositories and service, on SQLite and PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from corral.database.engine import Database
from corral.kernel.clock import SystemClock
from corral.kernel.errors import InvalidSpec, StoreUnavailable
from corral.ledger.adapters.sql import SqlAuditRows, SqlSecurityEvents
from corral.ledger.limits import LedgerLimits
from corral.ledger.model import AuditRow, Page, SecurityEvent
from corral.ledger.service import Ledger

ROWS = SqlAuditRows()
EVENTS = SqlSecurityEvents()


def audit_row(task_id: str = "task_a", run: int = 0, tenant: str = "acme", resolved_s: float = 100.0) -> AuditRow:
    return AuditRow(
        task_id=task_id,
        run=run,
        tenant=tenant,
        phase="completed",
        created_s=90.0,
        started_s=95.5,
        resolved_s=resolved_s,
        argv=("make", "-j2"),
        artifacts=(("out.tar", "b3:00-1"),),
        exit_status=0,
        warm=True,
    )


def refusal(at_s: float = 1.0, tenant: str = "", kind: str = "token-unknown", actor: str = "") -> SecurityEvent:
    return SecurityEvent(at_s=at_s, component="rest", kind=kind, reason="no such token", tenant=tenant, actor=actor)


async def added(database: Database, *rows: AuditRow) -> None:
    await database.write(lambda connection: ROWS.add(connection, rows))


async def eventually(ask: Callable[[], Awaitable[object]]) -> None:
    """Ask until the answer is truthy; the test's own time limit ends a wait in vain."""
    while not await ask():
        pass


async def audit_page(database: Database, tenant: str | None, page: Page) -> list[tuple[str, int]]:
    entries = await database.read(lambda connection: ROWS.page(connection, tenant, page))
    return [(entry.row.task_id, entry.row.run) for entry in entries]


async def test_an_audit_row_comes_back_as_it_was_written(database: Database) -> None:
    await added(database, audit_row())

    assert await database.read(lambda c: ROWS.of_task(c, "acme", "task_a")) == [audit_row()]


async def test_a_run_keeps_its_first_row_however_often_it_is_told(database: Database) -> None:
    await added(database, audit_row())
    await added(database, audit_row(resolved_s=999.0), audit_row(run=1))

    rows = await database.read(lambda c: ROWS.of_task(c, "acme", "task_a"))
    assert [(row.run, row.resolved_s) for row in rows] == [(0, 100.0), (1, 100.0)]


async def test_no_rows_at_all_are_no_statement(database: Database) -> None:
    await added(database)

    assert await audit_page(database, None, Page()) == []


async def test_a_tenant_never_sees_anothers_rows(database: Database) -> None:
    await added(database, audit_row(), audit_row(task_id="task_b", tenant="umbrella"))

    assert await audit_page(database, "acme", Page()) == [("task_a", 0)]
    assert await database.read(lambda c: ROWS.of_task(c, "acme", "task_b")) == []
    assert len(await audit_page(database, None, Page())) == 2


async def test_pages_go_from_the_newest_to_the_oldest_without_gap_or_repetition(database: Database) -> None:
    await added(database, *(audit_row(run=run) for run in range(7)))
    pages: list[list[int]] = []
    page = Page(limit=3)

    async with Ledger.open(database, SystemClock(), LedgerLimits(), ROWS, EVENTS) as ledger:
        while entries := await ledger.audit_page("acme", page):
            pages.append([entry.row.run for entry in entries])
            page = Page(limit=3, before=entries[-1].seq)

    assert pages == [[6, 5, 4], [3, 2, 1], [0]]


@pytest.mark.parametrize(
    "page", [Page(limit=0), Page(limit=-1), Page(limit=10**9), Page(before=-1), Page(before=2**70)]
)
async def test_an_absurd_page_is_the_callers_mistake(database: Database, page: Page) -> None:
    with pytest.raises(InvalidSpec):
        await database.read(lambda c: ROWS.page(c, None, page))


async def test_old_rows_are_forgotten_in_bounded_steps(database: Database) -> None:
    await added(database, *(audit_row(run=run, resolved_s=float(run)) for run in range(10)))

    first = await database.write(lambda c: ROWS.forget(c, before_s=5.0, limit=3))
    second = await database.write(lambda c: ROWS.forget(c, before_s=5.0, limit=3))

    assert (first, second) == (3, 2)
    assert await audit_page(database, None, Page()) == [("task_a", run) for run in (9, 8, 7, 6, 5)]


async def test_the_row_belongs_to_the_transaction_of_the_resolution(database: Database) -> None:
    async def resolve_and_fail(connection: AsyncConnection) -> None:
        await ROWS.add(connection, [audit_row()])
        raise KeyError("the resolution failed after its row was written")

    with pytest.raises(KeyError):
        await database.write(resolve_and_fail)

    assert await audit_page(database, None, Page()) == []


async def test_recorded_events_are_durable_when_the_ledger_is_closed(database: Database) -> None:
    async with Ledger.open(database, SystemClock(), LedgerLimits(flush_s=3600), ROWS, EVENTS) as ledger:
        for number in range(1200):
            ledger.record_nowait(refusal(at_s=float(number)))

    entries = await database.read(lambda c: EVENTS.page(c, None, Page(limit=1000)))
    assert [entry.event.at_s for entry in entries[:2]] == [1199.0, 1198.0]
    assert len(await database.read(lambda c: EVENTS.page(c, None, Page(before=entries[-1].seq)))) == 100


async def test_recorded_events_appear_while_the_ledger_is_open(database: Database) -> None:
    async with Ledger.open(database, SystemClock(), LedgerLimits(flush_s=0.0), ROWS, EVENTS) as ledger:
        ledger.record_nowait(refusal(tenant="acme"))

        await eventually(lambda: ledger.security_page("acme", Page()))
        assert await ledger.security_page("umbrella", Page()) == []


async def test_what_strangers_write_cannot_stop_the_ledger(database: Database) -> None:
    hostile = SecurityEvent(
        at_s=1.0,
        component="rest",
        kind="token-unknown",
        reason="nul \0 and surrogate \ud800",
        actor="x" * 100_000,
        facts={"size": 10**400, "path\0": "\udfff", **{str(number): number for number in range(500)}},
    )
    async with Ledger.open(database, SystemClock(), LedgerLimits(), ROWS, EVENTS) as ledger:
        ledger.record_nowait(hostile)
        ledger.record_nowait(refusal(kind="after-it"))

    after, before = await database.read(lambda c: EVENTS.page(c, None, Page()))
    assert after.event.kind == "after-it"
    assert before.event.reason == "nul \ufffd and surrogate ?"
    assert len(before.event.actor) == 2000
    assert len(before.event.facts) == 50


async def test_events_over_the_bound_are_counted_and_the_oldest_go_first(database: Database) -> None:
    limits = LedgerLimits(events_waiting=3, flush_s=3600)
    async with Ledger.open(database, SystemClock(), limits, ROWS, EVENTS) as ledger:
        for number in range(10):
            ledger.record_nowait(refusal(at_s=float(number)))

    entries = await database.read(lambda c: EVENTS.page(c, None, Page()))
    assert [entry.event.at_s for entry in entries if entry.event.kind == "token-unknown"] == [9.0, 8.0, 7.0]
    assert [entry.event.facts for entry in entries if entry.event.kind == "events-dropped"] == [{"count": 7}]


class FailingOnce(SqlSecurityEvents):
    """A repository whose first write fails."""

    def __init__(self) -> None:
        self.failed = asyncio.Event()

    async def add(self, connection: AsyncConnection, events: Sequence[SecurityEvent]) -> None:
        if not self.failed.is_set():
            self.failed.set()
            raise StoreUnavailable("injected")
        await super().add(connection, events)


async def test_events_survive_a_database_that_fails_for_a_moment(sqlite_url: str) -> None:
    events = FailingOnce()
    async with Database.open(sqlite_url) as database:
        async with Ledger.open(database, SystemClock(), LedgerLimits(flush_s=0.0), ROWS, events) as ledger:
            ledger.record_nowait(refusal(at_s=1.0))
            async with asyncio.timeout(20):
                await events.failed.wait()
            ledger.record_nowait(refusal(at_s=2.0))

        entries = await database.read(lambda c: EVENTS.page(c, None, Page()))
    assert sorted(entry.event.at_s for entry in entries) == [1.0, 2.0]


async def test_old_events_and_rows_are_forgotten_by_age(database: Database) -> None:
    now_s = SystemClock().now_s()
    async with Ledger.open(database, SystemClock(), LedgerLimits(keep_s=1000.0), ROWS, EVENTS) as ledger:
        ledger.record_nowait(refusal(at_s=now_s - 2000))
        ledger.record_nowait(refusal(at_s=now_s))
        await ledger.flush()
        await added(database, audit_row(resolved_s=now_s - 2000), audit_row(run=1, resolved_s=now_s))

        assert await ledger.forget_old() == 2
        assert await ledger.forget_old() == 0
        assert [row.run for row in await ledger.runs_of_task("acme", "task_a")] == [1]
        assert len(await ledger.audit_page(None, Page())) == len(await ledger.security_page(None, Page())) == 1


async def test_an_open_ledger_forgets_by_itself(database: Database) -> None:
    now_s = SystemClock().now_s()
    await added(database, audit_row(resolved_s=now_s - 2000), audit_row(run=1, resolved_s=now_s))
    limits = LedgerLimits(keep_s=1000.0, forget_every_s=0.01)

    async with Ledger.open(database, SystemClock(), limits, ROWS, EVENTS) as ledger:
        while len(await ledger.audit_page(None, Page())) > 1:
            pass

        assert [row.run for row in await ledger.runs_of_task("acme", "task_a")] == [1]


async def test_a_database_that_never_answers_again_does_not_hold_up_the_end(sqlite_url: str) -> None:
    class Failing(SqlSecurityEvents):
        async def add(self, connection: AsyncConnection, events: Sequence[SecurityEvent]) -> None:
            raise StoreUnavailable("injected")

    limits = LedgerLimits(close_s=0.5)
    async with Database.open(sqlite_url) as database:
        async with asyncio.timeout(20), Ledger.open(database, SystemClock(), limits, ROWS, Failing()) as ledger:
            ledger.record_nowait(refusal())

        assert await database.read(lambda c: EVENTS.page(c, None, Page())) == []
