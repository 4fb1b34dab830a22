"""What functions write: a line that was taken is read at any moment, on its way to the disk and after."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corral.functions.config import FunctionsConfig
from corral.functions.logs import FunctionLogs
from corral.functions.model import FunctionKey, LogLine, RevisionKey
from corral.kernel.clock import SystemClock

HELLO = FunctionKey("default", "hello")


def line(text: str, request_id: str = "") -> LogLine:
    return LogLine(key=RevisionKey(HELLO, "v1", "0" * 16), at_s=1.0, request_id=request_id, text=text)


def logs_in(home: Path, config: FunctionsConfig | None = None) -> FunctionLogs:
    return FunctionLogs(home, SystemClock(), config or FunctionsConfig())


def files_in(home: Path) -> list[Path]:
    return list(home.rglob("*.jsonl"))


async def texts(logs: FunctionLogs, *, after: int = -1, limit: int = 1000) -> list[str]:
    return [each.text for each in await logs.read(HELLO, after=after, limit=limit)]


async def written(logs: FunctionLogs, *lines: LogLine) -> None:
    """Take them and put them on the disk, as ``run`` does at the latest when it is cancelled."""
    logs.append_nowait(lines)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(logs.run())
        await asyncio.sleep(0)
        running.cancel()


class LateReader(FunctionLogs):
    """Its readers have seen the disk, and wait to say so."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, SystemClock(), FunctionsConfig())
        self.seen, self.go_on = threading.Event(), threading.Event()

    def _stored(self, key: FunctionKey, wanted: Any) -> list[LogLine]:
        found = super()._stored(key, wanted)
        self.seen.set()
        self.go_on.wait(10)
        return found


async def test_a_line_that_reaches_the_disk_while_somebody_reads_is_not_missed(tmp_path: Path) -> None:
    logs = LateReader(tmp_path)
    logs.append_nowait([line("one")])

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(texts(logs))
        await asyncio.to_thread(logs.seen.wait, 10)
        running = group.create_task(logs.run())
        async with asyncio.timeout(10):
            while logs._writing or logs._waiting:  # noqa: ASYNC110 (a thread's work)
                await asyncio.sleep(0.001)
        logs.go_on.set()
        assert await reading == ["one"]
        running.cancel()


async def test_a_line_that_comes_while_a_follower_looks_is_not_missed(tmp_path: Path) -> None:
    logs = LateReader(tmp_path)
    following = logs.follow(HELLO, after=0, idle_s=60.0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        batch = group.create_task(anext(following))
        await asyncio.to_thread(logs.seen.wait, 10)
        logs.append_nowait([line("one")])
        logs.go_on.set()
        assert [each.text for each in await batch] == ["one"]
    await following.aclose()


async def test_lines_are_read_in_order_wherever_they_are(tmp_path: Path) -> None:
    before = logs_in(tmp_path)
    await written(before, line("one"), line("two"))

    logs = logs_in(tmp_path)
    logs.append_nowait([line("three", "req_3")])

    assert await texts(logs) == ["one", "two", "three"]
    assert await texts(logs, limit=2) == ["two", "three"]
    first = (await logs.read(HELLO, after=-1, limit=3))[0]
    assert await texts(logs, after=first.seq, limit=1) == ["two"]
    assert [each.text for each in await logs.read(HELLO, after=-1, limit=9, request_id="req_3")] == ["three"]


async def test_a_log_keeps_its_newest_lines_within_its_size(tmp_path: Path) -> None:
    logs = logs_in(tmp_path, FunctionsConfig(log_bytes=10_000))
    for number in range(100):
        await written(logs, line(f"{number}" + " " * 500))

    kept = [int(text) for text in await texts(logs)]
    assert kept == list(range(kept[0], 100))
    assert kept[0] > 0
    assert sum(path.stat().st_size for path in files_in(tmp_path)) < 12_000


async def test_a_line_that_was_cut_off_by_a_crash_is_left_out_and_takes_no_other_with_it(tmp_path: Path) -> None:
    logs = logs_in(tmp_path)
    await written(logs, line("one"))
    with (tmp_path / "default" / "hello" / "new.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(line("half"))[:20])
    await written(logs, line("two"))

    assert await texts(logs) == ["one", "two"]


@pytest.mark.parametrize("lines", [1, 5])
async def test_when_too_much_waits_the_oldest_are_dropped_and_counted(tmp_path: Path, lines: int) -> None:
    logs = logs_in(tmp_path, FunctionsConfig(log_waiting_bytes=1000))

    logs.append_nowait([line("x" * 700) for _ in range(lines)])

    assert logs.dropped == lines - 1
    assert len(await texts(logs)) == 1
