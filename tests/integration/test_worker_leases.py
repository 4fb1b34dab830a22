"""A worker that is canceled, cut off, drained, held or stopped while real commands run."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.tasks.model import Phase, Reason
from corral.tasks.worker import WorkerStopped
from corral.testing.worker_world import World, a_world, eventually


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


async def test_a_cancel_kills_the_process_tree_within_a_second_and_tells_the_queue_nothing(world: World) -> None:
    ref = await world.start("trap '' TERM; (setsid sleep 601 &) ; sleep 602")
    loop = asyncio.get_running_loop()
    began = loop.time()

    world.worker.cancel([ref])
    await eventually(lambda: ref not in world.worker.runs)

    assert loop.time() - began < 1.0
    assert world.source.held[ref.task_id].resolved is None
    assert processes_with("sleep\x00602") == []
    assert processes_with("sleep\x00601") == []
    assert world.worker.statistics().aborted == 1


async def test_a_run_whose_lease_was_taken_away_is_aborted_at_the_next_renewal(tmp_path: Path) -> None:
    async with a_world(tmp_path, lease_s=0.6) as world:
        ref = await world.start("sleep 600")
        await world.source.lose(ref)
        await eventually(lambda: ref not in world.worker.runs)

        assert world.worker.statistics().leases_lost == 1
        assert world.source.held[ref.task_id].resolved is None


async def test_a_worker_that_is_cut_off_aborts_its_runs_when_their_leases_end(tmp_path: Path) -> None:
    async with a_world(tmp_path, lease_s=0.6) as world:
        ref = await world.start("sleep 600")
        world.source.down = True
        await eventually(lambda: ref not in world.worker.runs)

        assert world.worker.statistics().leases_lost == 1
        assert world.worker.statistics().slots_free == 4


async def test_leases_are_renewed_for_as_long_as_the_command_runs(tmp_path: Path) -> None:
    async with a_world(tmp_path, lease_s=0.6) as world:
        resolved, _ = await world.shell("sleep 1.5")

        assert resolved.phase is Phase.COMPLETED


async def test_a_report_is_told_again_until_the_scheduler_answers(world: World) -> None:
    ref = await world.start("sleep 0.2")
    world.source.down = True
    await eventually(lambda: world.worker.statistics().executing == 0)
    world.source.down = False

    resolved = await world.source.wait_resolved(ref)

    assert resolved.phase is Phase.COMPLETED


async def test_a_drain_finishes_what_runs_and_takes_nothing_new(world: World) -> None:
    ref = await world.start("sleep 0.3; echo finished")
    claims = len(world.source.slots_asked)
    world.worker.drain()

    async with asyncio.timeout(10):
        await world.working

    resolved = world.source.held[ref.task_id].resolved
    assert resolved is not None
    assert resolved.phase is Phase.COMPLETED
    assert len(world.source.slots_asked) == claims


async def test_a_worker_on_hold_takes_nothing_until_it_is_let_go(world: World) -> None:
    running = await world.start("sleep 0.2")
    world.worker.hold(on=True)
    assert (await world.source.wait_resolved(running)).phase is Phase.COMPLETED
    await eventually(lambda: not world.worker.runs)
    waiting = await world.source.submit({"command": ["true"]})
    assert world.worker.slots_free == 0
    assert waiting.task_id not in world.source.held

    world.worker.hold(on=False)

    assert (await world.source.wait_resolved(waiting)).phase is Phase.COMPLETED


async def test_a_stop_now_ends_runs_as_worker_shutdown_so_that_the_queue_starts_them_elsewhere(world: World) -> None:
    ref = await world.start("sleep 600")
    world.worker.stop_now("the machine goes away")

    with pytest.raises(WorkerStopped, match="the machine goes away"):
        async with asyncio.timeout(10):
            await world.working

    resolved = world.source.held[ref.task_id].resolved
    assert resolved is not None
    assert (resolved.phase, resolved.reason) == (Phase.EXCEPTION, Reason.WORKER_SHUTDOWN)
    assert "worker-shutdown" in world.sink.text(ref)


async def test_claims_never_exceed_the_free_slots(world: World) -> None:
    refs = [await world.source.submit({"command": ["sh", "-c", "sleep 0.05"]}) for _ in range(12)]
    for ref in refs:
        resolved = await world.source.wait_resolved(ref)
        assert resolved.phase is Phase.COMPLETED

    assert max(world.source.slots_asked) <= 4


def processes_with(words: str) -> list[int]:
    """Processes of this machine whose command line contains ``words``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if words in line:
                found.append(int(entry.name))
    return found
