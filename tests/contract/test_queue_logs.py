"""Finished logs reach the run and the ledger, in whatever order they and the run's end become known."""

import asyncio
from collections.abc import Collection, Mapping

import pytest

from corral.database.engine import Database
from corral.kernel.clock import SystemClock
from corral.ledger.adapters.sql import SqlAuditRows
from corral.tasks.log_files import LogKey, SealedLog
from corral.tasks.model import Phase, Resolved, TaskDefinition
from corral.tasks.ports import Claim, TenantTerms
from corral.tasks.queue import Queue
from corral.tasks.views import TaskViews

WORKER = "wrk_ann"
SEALED = SealedLog(digest="b3:" + "0" * 64 + "-77", log_bytes=123)
OTHER = SealedLog(digest="b3:" + "1" * 64 + "-78", log_bytes=124)


class Book:
    def names(self) -> Collection[str]:
        return ("red", "blue")

    def terms(self, tenant: str) -> TenantTerms:
        return TenantTerms()

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        return {}


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database, SystemClock(), Book())


async def a_run(queue: Queue) -> Claim:
    await queue.submit("red", [TaskDefinition(payload={}, expires_s=0.001)])
    return (await queue.claim(WORKER, 1, wait_s=0.0))[0]


async def end(queue: Queue, claim: Claim) -> None:
    report = Resolved(at_s=SystemClock().now_s(), phase=Phase.COMPLETED, exit_status=0, log_bytes=123)
    assert await queue.report(WORKER, [(claim.ref, report)]) == [None]


async def logs_of(queue: Queue, database: Database, claim: Claim) -> list[tuple[str, int]]:
    """As the run names it, and as the ledger does."""
    task_id = claim.ref.task_id
    run = (await TaskViews(database, SystemClock(), Book(), queue.signals).runs("red", task_id))[0]
    rows = await database.read(lambda connection: SqlAuditRows().of_task(connection, "red", task_id))
    return [(run.log, run.log_bytes), *((row.log, row.log_bytes) for row in rows)]


async def test_a_log_that_is_finished_after_its_run_is_added_to_the_ledger(queue: Queue, database: Database) -> None:
    claim = await a_run(queue)
    await end(queue, claim)
    assert await logs_of(queue, database, claim) == [("", 0), ("", 123)]

    await queue.logs_finished([(LogKey("red", claim.ref.task_id, 0), SEALED)])

    assert await logs_of(queue, database, claim) == [(SEALED.digest, 123)] * 2


async def test_a_log_that_is_finished_before_its_run_comes_with_the_end(queue: Queue, database: Database) -> None:
    claim = await a_run(queue)
    await queue.logs_finished([(LogKey("red", claim.ref.task_id, 0), SEALED)])

    await end(queue, claim)

    assert await logs_of(queue, database, claim) == [(SEALED.digest, 123)] * 2


async def test_the_first_log_stands_and_a_repeat_changes_nothing(queue: Queue, database: Database) -> None:
    claim = await a_run(queue)
    await end(queue, claim)
    key = LogKey("red", claim.ref.task_id, 0)

    for sealed in (SEALED, SEALED, OTHER):
        await queue.logs_finished([(key, sealed)])

    assert await logs_of(queue, database, claim) == [(SEALED.digest, 123)] * 2


async def test_logs_of_strangers_and_of_nobody_change_nothing(queue: Queue, database: Database) -> None:
    claim = await a_run(queue)
    await end(queue, claim)
    task_id = claim.ref.task_id

    await queue.logs_finished(
        [
            (LogKey("blue", task_id, 0), SEALED),
            (LogKey("red", task_id, 7), SEALED),
            (LogKey("red", "task_x", 0), SEALED),
        ]
    )

    assert await logs_of(queue, database, claim) == [("", 0), ("", 123)]


async def test_the_row_of_a_forgotten_task_keeps_its_log(queue: Queue, database: Database) -> None:
    claim = await a_run(queue)
    await end(queue, claim)
    await queue.logs_finished([(LogKey("red", claim.ref.task_id, 0), SEALED)])

    views = TaskViews(database, SystemClock(), Book(), queue.signals)
    async with asyncio.timeout(10):
        while await views.tasks_named([claim.ref.task_id]):
            await queue.sweep()

    rows = await database.read(lambda connection: SqlAuditRows().of_task(connection, "red", claim.ref.task_id))
    assert [row.log for row in rows] == [SEALED.digest]
