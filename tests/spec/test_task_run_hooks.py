"""The hooks of a run, side by side and each on its own; and its log."""

import asyncio

import pytest

from corral.kernel.errors import InvalidSpec
from corral.tasks.hooks import HookOverdue, HooksFailed, TaskPlugins
from corral.tasks.plugin import ExecDraft, TaskPlugin
from corral.tasks.run_log import RunLog

pytestmark = pytest.mark.looptime


class Noted(TaskPlugin):
    """Notes its hooks; waits for others, or fails, on demand."""

    def __init__(self, seen: list[str], name: str, error: Exception | None = None) -> None:
        self.seen, self.name, self.error = seen, name, error

    async def build(self, draft: ExecDraft) -> None:
        await asyncio.sleep(1)
        if self.error is not None:
            raise self.error
        self.seen.append(self.name)


async def test_hooks_run_side_by_side_and_one_that_fails_does_not_stop_the_others() -> None:
    seen: list[str] = []
    plugins = TaskPlugins(
        [
            ("a", Noted(seen, "a")),
            ("bad", Noted(seen, "bad", KeyError("bug"))),
            ("worse", Noted(seen, "worse", InvalidSpec("mistake"))),
            ("b", Noted(seen, "b")),
        ]
    )
    began_s = asyncio.get_running_loop().time()

    with pytest.raises(HooksFailed) as failed:
        await plugins.call("build", None)

    assert asyncio.get_running_loop().time() - began_s == pytest.approx(1)
    assert sorted(seen) == ["a", "b"]
    assert {type(error) for error in failed.value.errors} == {KeyError, InvalidSpec}


async def test_a_hook_that_hangs_is_ended_and_named() -> None:
    class Hanging(TaskPlugin):
        async def started(self) -> None:
            await asyncio.Event().wait()

    with pytest.raises(HooksFailed) as failed:
        await TaskPlugins([("hanging", Hanging())], within_s=60).call("started")

    (error,) = failed.value.errors
    assert isinstance(error, HookOverdue)
    assert "plugin hanging: started took longer than 1m0s" in str(error)


async def test_a_hook_that_is_not_overridden_is_never_called() -> None:
    class Silent(TaskPlugin):
        pass

    plugins = TaskPlugins([("silent", Silent())])

    assert Silent.overridden == frozenset()
    assert await plugins.call("stopped", None, None) == []


class Collected:
    """A log outlet in memory."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    async def close(self) -> None:
        self.data += b"<end>"


def a_log(*secrets: str) -> tuple[RunLog, Collected]:
    log, outlet = RunLog(secrets), Collected()
    log.attach(outlet)
    return log, outlet


async def test_our_lines_begin_at_a_line_start_and_cannot_be_forged_into_two() -> None:
    log, outlet = a_log()

    log.write(1, b"no newline")
    log.error("what\nhappened \x1b[31m")
    log.line("done")

    assert outlet.data == b"no newline\n[corral:error] what happened \\x1b[31m\n[corral] done\n"


async def test_a_secret_is_masked_across_chunks_across_streams_and_in_our_own_lines() -> None:
    log, outlet = a_log("hunter2")

    log.write(1, b"a hun")
    log.write(1, b"ter2 b hunt")
    log.write(2, b"er2 ")
    log.error("the value hunter2 is wrong")
    log.command_ended()
    await log.close()

    assert b"hunter2" not in outlet.data
    assert outlet.data.count(b"***") >= 2
    assert outlet.data.endswith(b"<end>")


async def test_a_log_that_is_closed_takes_nothing_more() -> None:
    log, outlet = a_log()
    await log.close()
    await log.close()

    with pytest.raises(RuntimeError, match="the log is closed"):
        log.line("too late")
    assert outlet.data == b"<end>"
