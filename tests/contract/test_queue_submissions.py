"""Submissions to the queue on a real database of either kind: dependencies, groups, repeats, reruns, refusals."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from corral.database.engine import Database
from corral.kernel.errors import Conflict, InvalidSpec, NotFound, QueueFull
from corral.kernel.ids import new_id
from corral.tasks.model import (
    Phase,
    Reason,
    Requires,
    TaskDefinition,
)
from corral.tasks.ports import TenantTerms
from corral.testing.queue_yard import T0, Yard


@pytest.fixture
async def yard(database: Database) -> AsyncIterator[Yard]:
    yield Yard(database)


async def test_a_group_is_canceled_together_and_what_ended_stays(yard: Yard) -> None:
    done = await yard.submit(group="nightly")
    await yard.run()
    live = [await yard.submit(group="nightly") for _ in range(3)]
    other = await yard.submit(group="weekly")

    canceled = await yard.queue.cancel_group("red", "nightly")

    assert {task.id for task in canceled} == {task.id for task in live}
    assert await yard.phase(done) is Phase.COMPLETED
    assert await yard.phase(other) is Phase.PENDING
    assert await yard.queue.cancel_group("blue", "weekly") == []


async def test_dependents_go_when_all_that_they_need_completed(yard: Yard) -> None:
    first, second = await yard.submit(), await yard.submit()
    yard.clock.wall_s += 1
    last = await yard.submit(dependencies=(first.id, second.id))

    await yard.run()
    await yard.sweep_all()
    assert await yard.phase(last) is Phase.UNSCHEDULED
    await yard.run()
    await yard.sweep_all()

    assert await yard.phase(last) is Phase.PENDING
    assert await yard.run() == last.id


async def test_a_failure_runs_down_a_chain_of_dependents(yard: Yard) -> None:
    chain = [await yard.submit()]
    for _ in range(5):
        chain.append(await yard.submit(dependencies=(chain[-1].id,)))
    whatever = await yard.submit(dependencies=(chain[-1].id,), requires=Requires.ALL_RESOLVED)

    await yard.run(Phase.FAILED)
    for _ in chain:
        await yard.sweep_all()

    lives = [(await yard.views.get("red", task.id)).life for task in chain[1:]]
    assert {life.reason for life in lives} == {Reason.DEPENDENCY_FAILED}
    assert await yard.phase(whatever) is Phase.PENDING


async def test_one_submission_may_hold_a_task_and_what_depends_on_it(yard: Yard) -> None:
    ids = [new_id("task", now_s=T0) for _ in range(2)]
    definitions = [TaskDefinition(payload={}), TaskDefinition(payload={}, dependencies=(ids[0],))]

    tasks = await yard.queue.submit("red", definitions, ids=ids)

    assert [task.life.phase for task in tasks] == [Phase.PENDING, Phase.UNSCHEDULED]


async def test_no_cycle_can_be_written(yard: Yard) -> None:
    ids = [new_id("task", now_s=T0) for _ in range(2)]
    definitions = [TaskDefinition(payload={}, dependencies=(other,)) for other in reversed(ids)]

    with pytest.raises(InvalidSpec, match="does not exist before this task"):
        await yard.queue.submit("red", definitions, ids=ids)
    with pytest.raises(InvalidSpec):
        await yard.queue.submit("red", definitions[:1], ids=ids[1:])
    assert await yard.views.page("red") == []


async def test_another_tenants_tasks_do_not_exist(yard: Yard) -> None:
    task = await yard.submit("red")

    for ask in (
        yard.views.get("blue", task.id),
        yard.views.story("blue", task.id),
        yard.views.why("blue", task.id),
        yard.views.artifacts("blue", task.id),
        yard.queue.cancel("blue", task.id),
        yard.queue.rerun("blue", task.id),
    ):
        with pytest.raises(NotFound):
            await ask
    with pytest.raises(InvalidSpec, match="does not exist"):
        await yard.submit("blue", dependencies=(task.id,))
    with pytest.raises(Conflict, match="taken"):
        await yard.queue.submit("blue", [TaskDefinition(payload={})], ids=[task.id])


async def test_a_submission_repeated_under_its_key_gives_the_same_tasks(yard: Yard) -> None:
    definitions = [TaskDefinition(payload={"a": place}) for place in range(3)]

    first = await yard.queue.submit("red", definitions, idempotency_key="k")
    await yard.run()
    second = await yard.queue.submit("red", definitions, idempotency_key="k")
    elsewhere = await yard.queue.submit("blue", definitions, idempotency_key="k")

    assert [task.id for task in second] == [task.id for task in first]
    assert second[0].life.phase is Phase.COMPLETED
    assert {task.id for task in elsewhere}.isdisjoint(task.id for task in first)
    with pytest.raises(Conflict, match="another submission"):
        await yard.queue.submit("red", definitions[:1], idempotency_key="k")


async def test_submissions_under_one_key_that_race_make_one_set_of_tasks(yard: Yard) -> None:
    async def submit() -> list[str]:
        for _ in range(3):
            try:
                tasks = await yard.queue.submit("red", [TaskDefinition(payload={})] * 2, idempotency_key="k")
            except Conflict:
                continue  # PostgreSQL: the other one has just committed; ask again
            return [task.id for task in tasks]
        raise AssertionError("the key never settled")

    async with asyncio.TaskGroup() as group:
        racing = [group.create_task(submit()) for _ in range(5)]

    assert len({tuple(task.result()) for task in racing}) == 1
    assert len(await yard.views.page("red")) == 2


async def test_a_submission_repeated_with_its_ids_changes_nothing(yard: Yard) -> None:
    ids = [new_id("task", now_s=T0)]

    first = await yard.queue.submit("red", [TaskDefinition(payload={})], ids=ids)
    second = await yard.queue.submit("red", [TaskDefinition(payload={})], ids=ids)

    assert first == second
    with pytest.raises(Conflict, match="taken"):
        await yard.queue.submit("red", [TaskDefinition(payload={"other": 1})], ids=ids)


async def test_a_tenants_waiting_tasks_are_bounded_and_its_neighbour_does_not_care(yard: Yard) -> None:
    yard.book.granted["red"] = TenantTerms(max_pending=5)
    await yard.queue.submit("red", [TaskDefinition(payload={})] * 4)

    with pytest.raises(QueueFull, match="4 tasks wait"):
        await yard.queue.submit("red", [TaskDefinition(payload={})] * 2)
    await yard.queue.submit("blue", [TaskDefinition(payload={})] * 10)

    assert len(await yard.views.page("red")) == 4


async def test_all_mistakes_are_listed_at_once_and_nothing_is_kept(yard: Yard) -> None:
    definitions = [
        TaskDefinition(payload={}),
        TaskDefinition(payload={"x": 1}, deadline_s=-1.0, retries=1000),
        TaskDefinition(payload={}, expires_s=float("nan"), dependencies=("nonsense",)),
    ]

    with pytest.raises(InvalidSpec) as refused:
        await yard.queue.submit("red", definitions)

    starts = [mistake.split(":")[0] for mistake in refused.value.mistakes]
    assert starts == [
        "tasks[1].deadline_s",
        "tasks[1].retries",
        "tasks[1].payload.x",
        "tasks[2].expires_s",
        "tasks[2].dependencies",
    ]
    assert await yard.views.page("red") == []


async def test_a_final_task_runs_again_on_request(yard: Yard) -> None:
    task = await yard.submit()
    await yard.run(Phase.FAILED)

    await yard.queue.rerun("red", task.id)
    await yard.run()

    life = (await yard.views.get("red", task.id)).life
    assert (life.phase, [run.phase for run in life.runs]) == (Phase.COMPLETED, [Phase.FAILED, Phase.COMPLETED])


async def test_a_chain_that_broke_can_be_rerun_from_its_root(yard: Yard) -> None:
    root = await yard.submit()
    leaf = await yard.submit(dependencies=(root.id,))
    await yard.run(Phase.FAILED)
    await yard.sweep_all()

    with pytest.raises(Conflict, match="did not complete"):
        await yard.queue.rerun("red", leaf.id)
    await yard.queue.rerun("red", root.id)
    await yard.queue.rerun("red", leaf.id)
    assert await yard.phase(leaf) is Phase.UNSCHEDULED
    await yard.run()
    await yard.sweep_all()

    assert await yard.phase(leaf) is Phase.PENDING


async def test_a_task_that_was_submitted_after_its_dependency_failed_waits_for_it_when_rerun(yard: Yard) -> None:
    root = await yard.submit()
    await yard.run(Phase.FAILED)
    leaf = await yard.submit(dependencies=(root.id,))
    assert (leaf.life.phase, leaf.life.reason) == (Phase.EXCEPTION, Reason.DEPENDENCY_FAILED)

    with pytest.raises(Conflict, match="did not complete"):
        await yard.queue.rerun("red", leaf.id)
    await yard.queue.rerun("red", root.id)
    await yard.queue.rerun("red", leaf.id)

    assert await yard.phase(leaf) is Phase.UNSCHEDULED
