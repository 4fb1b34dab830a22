"""Execs through the real agent, on the host: the agent is what is tested, not the walls around it."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from corral.kernel.errors import InvalidSpec, SandboxLost
from corral.sandboxes.link.execution import Channel
from corral.sandboxes.model import End, ExecRequest, TerminalSize
from corral.sandboxes.sandbox import Sandbox
from corral.testing.bare_agent import BareBox, bare_sandbox

Bare = tuple[Sandbox, BareBox]
PATH = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
async def bare() -> AsyncIterator[Bare]:
    async with bare_sandbox() as pair:
        yield pair


def shell(script: str, **more: object) -> ExecRequest:
    return ExecRequest(argv=("/bin/sh", "-c", script), env=tuple(PATH.items()), **more)  # type: ignore[arg-type]


async def wait_until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 -- a process of the host announces nothing
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_output_and_status_come_back(bare: Bare) -> None:
    done = await bare[0].run("sh", "-c", "echo out; echo err >&2; exit 3", env=PATH)

    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert (done.result.end, done.result.exit_status, done.result.shell_status) == (End.EXITED, 3, 3)


async def test_merged_output_keeps_the_order_in_which_the_command_wrote(bare: Bare) -> None:
    script = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    pieces: list[tuple[Channel, bytes]] = []

    result = await bare[0].exec(
        shell(script, merge_output=True), on_output=lambda channel, data: pieces.append((channel, data))
    )

    assert result.ok
    assert {channel for channel, _ in pieces} == {1}
    assert b"".join(data for _, data in pieces) == b"".join(b"out %d\nerr %d\n" % (i, i) for i in range(500))


async def test_merged_output_ends_although_a_half_of_it_is_closed_and_counts_against_one_limit(bare: Bare) -> None:
    closed = await bare[0].exec(shell("exec >&-; echo still here >&2; exit 5", merge_output=True))
    flood = await bare[0].exec(
        shell("while :; do echo out; echo err >&2; done", merge_output=True, output_bytes_max=100_000)
    )

    assert (closed.end, closed.exit_status) == (End.EXITED, 5)
    assert flood.end is End.OUTPUT_LIMIT


async def test_a_signal_is_told_as_a_signal(bare: Bare) -> None:
    done = await bare[0].run("sh", "-c", "kill -SEGV $$", env=PATH)

    assert (done.result.end, done.result.signal) == (End.SIGNALED, signal.SIGSEGV)
    assert "SIGSEGV" in done.result.message


async def test_environment_and_directory_are_exactly_what_was_asked(bare: Bare, tmp_path: Path) -> None:
    done = await bare[0].run("/usr/bin/env", env={"A": "1", "B": "two words"}, cwd=str(tmp_path))
    where = await bare[0].run("/bin/pwd", cwd=str(tmp_path))

    assert done.stdout == b"A=1\nB=two words\n"
    assert where.stdout.decode().strip() == str(tmp_path)


async def test_only_the_standard_descriptors_and_no_signal_setting_are_inherited(bare: Bare) -> None:
    done = await bare[0].run("sh", "-c", "ls /proc/self/fd; grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status", env=PATH)

    descriptors = done.stdout.split(b"Sig")[0].split()
    assert descriptors == [b"0", b"1", b"2", b"3"]  # 3 is ls reading the directory
    assert b"SigBlk:\t0000000000000000" in done.stdout
    assert b"SigIgn:\t0000000000000000" in done.stdout


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
async def test_stdin_of_any_size_goes_in_and_comes_back(bare: Bare, size: int) -> None:
    data = os.urandom(size)

    done = await bare[0].run("/bin/cat", stdin=data)

    assert done.stdout == data


async def test_stdin_nobody_reads_does_not_hold_up_the_end(bare: Bare) -> None:
    async with asyncio.timeout(10):
        done = await bare[0].run("/bin/true", stdin=b"x" * 5_000_000)

    assert done.result.ok


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("no-such-command",), 'no such command "no-such-command"'),
        (("/etc/passwd",), '"/etc/passwd" is not an executable file'),
        (("/nowhere/x",), 'no such command "/nowhere/x"'),
    ],
)
async def test_a_command_that_cannot_start_says_why(bare: Bare, argv: tuple[str, ...], sentence: str) -> None:
    done = await bare[0].run(*argv)

    assert (done.result.end, done.result.message, done.result.shell_status) == (End.NOT_STARTED, sentence, 127)


async def test_a_missing_working_directory_is_named(bare: Bare) -> None:
    done = await bare[0].run("/bin/true", cwd="/nowhere")

    assert done.result.end is End.NOT_STARTED
    assert '"/nowhere"' in done.result.message


async def test_arguments_beyond_what_waits_in_a_keeper_arrive_whole(bare: Bare) -> None:
    await bare[0].run("/bin/true")  # now a keeper waits
    words = tuple(f"{number:0>1000}" for number in range(300))

    done = await bare[0].run("/bin/echo", *words)

    assert done.stdout.decode().split() == list(words)


async def test_a_malformed_request_is_refused_before_it_leaves(bare: Bare) -> None:
    with pytest.raises(InvalidSpec, match="NUL"):
        await bare[0].run("a\0b")


async def test_large_output_is_complete_and_usage_is_told(bare: Bare) -> None:
    received = 0

    def sink(channel: Channel, data: bytes) -> None:
        nonlocal received
        received += len(data)

    result = await bare[0].exec(ExecRequest(argv=("head", "-c", "50000000", "/dev/zero")), on_output=sink)

    assert (received, result.ok) == (50_000_000, True)
    assert result.usage.wall_s > 0
    assert result.usage.memory_peak_bytes > 100_000


async def test_an_output_limit_ends_the_exec_with_its_own_end(bare: Bare) -> None:
    done = await bare[0].run("/usr/bin/yes", output_bytes_max=1000)

    assert (done.result.end, len(done.stdout)) == (End.OUTPUT_LIMIT, 1000)
    assert bare[0].soiled


async def test_a_time_limit_reaches_daemons_that_ignore_sigterm(bare: Bare, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"(trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > {pid_file}; sleep 100; sleep 100' &); sleep 100"

    result = await bare[0].exec(shell(script, timeout_s=0.5))

    assert result.end is End.TIMED_OUT
    assert is_gone(int(pid_file.read_text()))


async def test_cancelling_kills_the_tree_before_it_returns(bare: Bare, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"setsid sh -c 'trap \"\" TERM; echo $$ > {pid_file}; sleep 100; sleep 100'"
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bare[0].exec(shell(script)))
        await wait_until(lambda: pid_file.exists() and pid_file.stat().st_size > 0)

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert is_gone(int(pid_file.read_text()))
    assert bare[0].soiled


async def test_a_process_that_outlives_its_command_is_killed_and_told(bare: Bare) -> None:
    async with asyncio.timeout(10):
        done = await bare[0].run("sh", "-c", "sleep 100 & echo $!", env=PATH)

    assert (done.result.exit_status, done.result.left_processes) == (0, True)
    assert is_gone(int(done.stdout))
    assert bare[0].soiled


async def test_a_background_process_that_ends_by_itself_soils_nothing(bare: Bare) -> None:
    done = await bare[0].run("sh", "-c", "(sleep 0.02; echo late) & echo early", env=PATH)

    assert done.stdout == b"early\nlate\n"
    assert not done.result.left_processes


async def test_a_killed_keeper_takes_its_tree_along_and_is_told(bare: Bare) -> None:
    execution = await bare[0].start(shell("echo $$; sleep 100"))
    chunk = await execution.wait_output()
    assert chunk is not None
    command = int(chunk[1])

    os.kill(psutil.Process(command).ppid(), signal.SIGKILL)
    result = await execution.wait()

    assert result.left_processes
    assert is_gone(command)
    assert bare[0].soiled


async def test_a_stalled_reader_stalls_only_its_own_exec(bare: Bare) -> None:
    stalled = await bare[0].start(ExecRequest(argv=("/usr/bin/yes",)))
    await stalled.wait_output()

    for _ in range(20):
        assert (await bare[0].run("/bin/echo", "on")).stdout == b"on\n"

    memory = psutil.Process(bare[1].agent.pid).memory_info().rss
    await stalled.kill_and_wait()
    assert memory < 8 * 1024 * 1024


async def test_a_time_limit_is_kept_although_the_reader_stalls(bare: Bare) -> None:
    begun = time.monotonic()
    stalled = await bare[0].start(ExecRequest(argv=("/usr/bin/yes",), timeout_s=0.2))
    first = await stalled.wait_output()
    assert first is not None

    await wait_until(lambda: not psutil.Process(bare[1].agent.pid).children(recursive=True)[1:])
    result = await stalled.wait()

    assert result.end is End.TIMED_OUT
    assert time.monotonic() - begun < 10


async def test_a_terminal_has_its_size_and_hears_a_change(bare: Bare) -> None:
    request = shell(
        "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.02; done",
        terminal=TerminalSize(100, 30),
    )
    execution = await bare[0].start(request)
    output = b""
    async for _, data in execution.output():
        output += data
        if b"ready" in output:
            execution.resize(TerminalSize(120, 40))

    assert b"30 100" in output
    assert b"40 120" in output


async def test_typed_control_c_interrupts_what_runs_on_the_terminal(bare: Bare) -> None:
    execution = await bare[0].start(shell("echo ready; sleep 100", terminal=TerminalSize()))
    output = b""
    async for _, data in execution.output():
        output += data
        if b"ready" in output:
            await execution.write_stdin(b"\x03")

    result = await execution.wait()
    assert result.shell_status == 128 + signal.SIGINT


async def test_a_signal_reaches_the_whole_tree(bare: Bare) -> None:
    inner = "trap 'echo inner; exit' USR1; echo ready; while :; do sleep 0.02; done"
    script = f'trap "echo outer" USR1; sh -c "{inner}" & wait; wait'
    execution = await bare[0].start(shell(script))
    output = b""
    async for _, data in execution.output():
        output += data
        if b"ready" in output and b"outer" not in output:
            execution.signal(signal.SIGUSR1)

    assert b"inner" in output
    assert b"outer" in output


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_interleaved_execs_leave_nothing(bare: Bare, count: int) -> None:
    sandbox, box = bare
    agent = psutil.Process(box.agent.pid)
    results: list[bytes] = []
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            done = await sandbox.run("/bin/echo", str(number))
            results.append(done.stdout)

    await sandbox.run("/bin/true")
    before = agent.num_fds()
    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(work())

    assert sorted(map(int, results)) == list(range(count))
    assert await sandbox.reset()
    assert agent.num_fds() <= before + 2 * 16  # of each keeper that waits, its socket and its state in /proc
    assert len(agent.children(recursive=True)) <= 16
    assert agent.memory_info().rss < 8 * 1024 * 1024


async def test_the_end_of_the_stream_ends_everything() -> None:
    async with bare_sandbox() as (sandbox, box):
        execution = await sandbox.start(shell("trap '' TERM; (setsid sleep 100 &); echo $$; sleep 100"))
        chunk = await execution.wait_output()
        assert chunk is not None
        tree = psutil.Process(box.agent.pid).children(recursive=True)
        assert len(tree) >= 3

        box.link.close()

        with pytest.raises(SandboxLost):
            await execution.wait()
        await wait_until(lambda: all(is_gone(process.pid) for process in tree))


async def test_a_killed_agent_takes_its_execs_along() -> None:
    async with bare_sandbox() as (sandbox, box):
        execution = await sandbox.start(shell("echo $$; sleep 100"))
        chunk = await execution.wait_output()
        assert chunk is not None

        box.agent.kill()

        with pytest.raises(SandboxLost):
            await execution.wait()
        await wait_until(lambda: is_gone(int(chunk[1])))
        assert sandbox.soiled


async def test_a_host_that_stops_reading_does_not_grow_the_agent(bare: Bare) -> None:
    sandbox, box = bare
    executions = [await sandbox.start(ExecRequest(argv=("/usr/bin/yes",))) for _ in range(32)]
    for execution in executions:
        await execution.wait_output()

    await sandbox.ping()

    assert psutil.Process(box.agent.pid).memory_info().rss < 32 * 1024 * 1024
    async with asyncio.TaskGroup() as group:
        for execution in executions:
            group.create_task(execution.kill_and_wait())
