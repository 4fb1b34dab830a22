"""The watchdog stops a worker in which nothing moves, and only then."""

import asyncio

import pytest
from structlog.testing import capture_logs

from corral.kernel.clock import LoopClock
from corral.sandboxes.model import End, ExecResult
from corral.tasks.plugins.watchdog import WatchdogConfig, WatchdogPlugin

pytestmark = pytest.mark.looptime


class Controls:
    """Notes what the watchdog does to its worker."""

    def __init__(self) -> None:
        self.why = ""
        self.at_s = 0.0

    def drain(self) -> None:
        raise AssertionError("a worker that hangs cannot drain")

    def stop_now(self, why: str) -> None:
        self.why, self.at_s = why, asyncio.get_running_loop().time()


async def test_a_worker_in_which_nothing_moves_is_stopped_and_says_where_it_stood() -> None:
    controls = Controls()

    with capture_logs() as log:
        await WatchdogPlugin(LoopClock(), WatchdogConfig(silent_s=100)).serve(controls)

    assert controls.at_s == pytest.approx(100)
    assert "nothing moved for 1m40s" in controls.why
    assert "test_a_worker_in_which_nothing_moves_is_stopped_and_says_where_it_stood" in log[0]["stacks"]


async def test_progress_and_idleness_put_the_stop_off() -> None:
    controls = Controls()
    watchdog = WatchdogPlugin(LoopClock(), WatchdogConfig(silent_s=100))

    async with asyncio.TaskGroup() as group:
        group.create_task(watchdog.serve(controls))
        await asyncio.sleep(80)
        watchdog.idle(80)
        await asyncio.sleep(80)
        watchdog.progress()

    assert controls.at_s == pytest.approx(260)


async def test_while_a_command_runs_nothing_is_expected_of_the_worker() -> None:
    controls = Controls()
    watchdog = WatchdogPlugin(LoopClock(), WatchdogConfig(silent_s=100))
    watched = watchdog.attach(None, None)  # type: ignore[arg-type]  # it reads nothing of the run

    async with asyncio.TaskGroup() as group:
        group.create_task(watchdog.serve(controls))
        watched.started()
        await asyncio.sleep(5000)
        assert controls.why == ""
        watched.stopped(ExecResult(end=End.EXITED, exit_status=0), None)  # type: ignore[arg-type]

    assert 5100 <= controls.at_s <= 5160
