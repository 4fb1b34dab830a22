"""A hundred tasks leave nothing that was not there before: in the kernel, on the disk, in the database.

(A thousand lives of sandboxes alone are in ``test_runtime_lives``; ten times as much of both in ``bench``.)
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from corral.client import Corral
from corral.tasks.model import Phase, TaskDefinition
from corral.testing.processes import CorralProcess, public_directory, sandbox_groups, why_no_agent
from corral.testing.runtime_contract import open_descriptors

KEPT = {"audit", "security_events", "workers", "alembic_version", "sqlite_sequence"}
"""Tables that remember on purpose; for how long is configured elsewhere."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]


@pytest.fixture
def up() -> Iterator[CorralProcess]:
    with public_directory() as home:
        up = CorralProcess(
            *("up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0"),
            *("pool.idle_ttl_s=1", "queue.idempotency_s=1", "logs.seal_grace_s=0.5", "logs.forget_every_s=1"),
        )
        try:
            up.start()
            yield up
        finally:
            up.stop()


def tasks(count: int) -> list[TaskDefinition]:
    """Of every kind: with artifacts, failing, with a command that leaves processes behind, retried."""
    scripts = (
        "echo fine > out",
        "echo failing; touch out; exit 3",
        "touch out; setsid sleep 7201.5 & echo left a process behind",
        "touch out; exit 75",
    )
    return [
        TaskDefinition(
            payload={
                "command": ["/bin/sh", "-c", scripts[number % len(scripts)]],
                "artifacts": [{"path": "out"}],
                "retry_statuses": [75],
            },
            retries=1,
            expires_s=5.0,
        )
        for number in range(count)
    ]


async def work(corral: Corral, count: int) -> None:
    submitted = await corral.tasks.submit_all(tasks(count))
    async with asyncio.TaskGroup() as group:  # all at once: an ended task is soon forgotten
        ends = [group.create_task(corral.tasks.wait(task.id)) for task in submitted]
    assert {end.result().phase for end in ends} == {Phase.COMPLETED, Phase.FAILED, Phase.EXCEPTION}


def belongings(up: CorralProcess) -> dict[str, Any]:
    """What Corral has at this moment, in the kernel, on the disk and in the database."""
    processes = [up.process, *up.process.children(recursive=True)]
    groups = [child for group in sandbox_groups(up.data) for child in Path(group).iterdir() if child.is_dir()]
    folders = ("spool", "logs", "sandboxes/boxes", "sandboxes/work", "caches")
    return {
        "processes": sorted(each.name() for each in processes),
        "descriptors": [descriptors(each.pid) for each in processes[:3]],
        "mounts": sorted(len(Path(f"/proc/{each.pid}/mounts").read_text().splitlines()) for each in processes),
        "network namespaces": len({os.readlink(f"/proc/{each.pid}/ns/net") for each in processes}),
        "control groups": len(groups),
        "temporary files": sorted(path.name for path in up.temporary.iterdir()),
        "files": sorted(str(path) for folder in folders for path in (up.data / folder).rglob("*") if not path.is_dir()),
        "rows": rows(up.data / "corral.db"),
    }


def descriptors(pid: int) -> dict[str, int]:
    """What the process has open, except its database: a pool of readers, which is bounded and opens one when needed."""
    return {target: count for target, count in open_descriptors(pid).items() if "/corral.db" not in target}


def rows(database: Path) -> dict[str, int]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names if name not in KEPT
        }


def settled(up: CorralProcess, *, within_s: float) -> dict[str, Any]:
    """Belongings when nothing has changed for a second, no sandbox is warm any more and no task is remembered."""
    until_s, since_s, last = time.monotonic() + within_s, time.monotonic(), None
    while time.monotonic() < until_s:
        try:
            now = belongings(up)
        except (OSError, psutil.Error):
            now = None  # something ended while we looked
        if now != last or now is None:
            since_s, last = time.monotonic(), now
        elif now["control groups"] == 0 and now["rows"]["tasks"] == 0 and time.monotonic() - since_s > 2.0:
            return now
        time.sleep(0.1)
    raise AssertionError(f"it does not settle: {last}")


async def test_a_hundred_tasks_leave_nothing_behind(up: CorralProcess) -> None:
    async with Corral(up.url) as corral:
        await work(corral, 20)
    before = settled(up, within_s=60)

    async with Corral(up.url) as corral:
        await work(corral, 100)
    after = settled(up, within_s=60)

    assert after == before
