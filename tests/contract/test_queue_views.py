"""What is told of tasks, on a real database of either kind: pages, streams, artifacts, audit rows, reasons."""

from collections.abc import AsyncIterator

import pytest

from corral.database.engine import Database
from corral.kernel.errors import InvalidSpec, NotFound
from corral.ledger.adapters.sql import SqlAuditRows
from corral.tasks.adapters.sql import TaskFilter
from corral.tasks.model import (
    Artifact,
    ArtifactKind,
    Phase,
    Resolved,
    TaskDefinition,
)
from corral.tasks.ports import WorkerOffer
from corral.testing.queue_yard import ANN, T0, Yard


@pytest.fixture
async def yard(database: Database) -> AsyncIterator[Yard]:
    yield Yard(database)


async def test_the_audit_row_of_a_run_that_nobody_reported_says_what_was_asked_for(yard: Yard) -> None:
    task = await yard.submit(payload={"command": ["make", "-j2"], "image": "root:/srv/debian"})
    await yard.claim()

    await yard.queue.cancel("red", task.id)

    rows = await yard.database.read(lambda connection: SqlAuditRows().of_task(connection, "red", task.id))
    assert [(row.reason, row.argv, row.image) for row in rows] == [("canceled", ("make", "-j2"), "root:/srv/debian")]


async def test_artifacts_are_those_of_the_last_run_that_ended_unless_asked_otherwise(yard: Yard) -> None:
    task = await yard.submit()
    for name in ("old", "new"):
        claim = (await yard.claim())[0]
        made = (Artifact(name=name, kind=ArtifactKind.FILE, digest="b3:x", size_bytes=3_000_000_000),)
        await yard.report(claim, Resolved(at_s=T0, phase=Phase.COMPLETED, artifacts=made))
        if name == "old":
            await yard.queue.rerun("red", task.id)

    assert [artifact.name for artifact in await yard.views.artifacts("red", task.id)] == ["new"]
    assert [artifact.name for artifact in await yard.views.artifacts("red", task.id, 0)] == ["old"]
    with pytest.raises(NotFound, match="no run 7"):
        await yard.views.artifacts("red", task.id, 7)


async def test_pages_go_from_new_to_old_and_filters_narrow_them(yard: Yard) -> None:
    made = []
    for place in range(7):
        yard.clock.wall_s += 1
        made.append(await yard.submit(name="even" if place % 2 == 0 else "odd", group="g" if place < 3 else ""))
    await yard.run()

    first = await yard.views.page("red", limit=4)
    rest = await yard.views.page("red", after=first[-1].id, limit=4)

    assert [task.id for task in (*first, *rest)] == [task.id for task in reversed(made)]
    assert len(await yard.views.page("red", TaskFilter(name="odd"))) == 3
    assert len(await yard.views.page("red", TaskFilter(group="g"))) == 3
    assert [task.id for task in await yard.views.page("red", TaskFilter(phases=(Phase.COMPLETED,)))] == [made[0].id]
    with pytest.raises(InvalidSpec):
        await yard.views.page("red", limit=0)


async def test_the_stream_of_a_group_tells_each_line_once(yard: Yard) -> None:
    await yard.submit(group="g")
    yard.clock.wall_s += 1
    await yard.submit(group="other")
    before = await yard.views.events("red", after_seq=0, group="g")
    await yard.run()

    after = await yard.views.events("red", after_seq=before[-1].seq, group="g")

    assert [line.kind for line in before] == ["submitted"]
    assert [line.kind for line in after] == ["claimed", "resolved"]
    assert await yard.views.last_seq("red") == after[-1].seq
    assert await yard.views.last_seq("blue") == 0


async def test_why_names_what_a_pending_task_waits_for(yard: Yard) -> None:
    first = await yard.submit(runtime="firecracker")
    second = await yard.submit(dependencies=(first.id,))
    yard.clock.wall_s += 1
    third = await yard.submit()
    yard.workers = [WorkerOffer(worker=ANN, runtimes=("bubblewrap",), slots=2, slots_free=1, draining=False)]

    assert (
        'no live worker offers the runtime "firecracker"; offered: bubblewrap'
        in (await yard.views.why("red", first.id))[0]
    )
    assert f"it waits for {first.id} (pending) to complete" in (await yard.views.why("red", second.id))[0]
    assert "1 task of this tenant is served before" in (await yard.views.why("red", third.id))[0]
    yard.workers = []
    assert "no worker is connected" in (await yard.views.why("red", third.id))[0]


async def test_statistics_count_by_tenant_and_phase(yard: Yard) -> None:
    await yard.queue.submit("red", [TaskDefinition(payload={})] * 3)
    await yard.claim()

    statistics = await yard.views.statistics()

    assert statistics.phases == {"red": {Phase.PENDING: 2, Phase.RUNNING: 1}}
