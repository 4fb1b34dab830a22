"""A data directory without a free byte: clear errors while it lasts, nothing accepted lost, and then all goes on.

The directory is a small tmpfs in a mount namespace of its own, which vanishes with the processes in it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from corral.client import Corral
from corral.kernel.errors import CorralError, QuotaExceeded
from corral.tasks.model import Phase, TaskDefinition
from corral.testing.history import contradictions, read_history
from corral.testing.processes import CorralProcess, public_directory, why_no_agent
from corral.testing.runtime_contract import processes_with, wait_until

DISK_BYTES = 32 * 1024 * 1024
MARK = f"writes-on-a-full-disk-{os.getpid()}"

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is not installed"),
]


@pytest.fixture
def up() -> Iterator[CorralProcess]:
    with public_directory() as home:
        data = home / "data"
        data.mkdir()
        mount = f'mount -t tmpfs -o size={DISK_BYTES},mode=700 none {data} && exec "$@"'
        up = CorralProcess(
            *("up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0"),
            wrapper=("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"),
        )
        try:
            up.start()
            yield up
        finally:
            up.stop()


class SmallDisk:
    """The disk of a process, reached through its mount namespace."""

    def __init__(self, up: CorralProcess) -> None:
        self.data = Path(f"/proc/{up.process.pid}/root") / up.data.relative_to("/")
        self._ballast = self.data / "ballast"

    def fill(self) -> None:
        """Until not a byte is free."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (65536, 4096):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        self._ballast.unlink()


def shell(script: str, **more: object) -> TaskDefinition:
    return TaskDefinition(payload={"command": ["/bin/sh", "-c", script], **more}, metadata={"padding": "x" * 5000})


async def refusal(corral: Corral, accepted: list[str]) -> CorralError:
    """Submit until it is refused; what was accepted until then must not be lost."""
    for number in range(2000):
        try:
            accepted.append((await corral.tasks.submit(shell(f"echo {number}"))).id)
        except CorralError as error:
            return error
    raise AssertionError("a full disk takes everything")


async def log_of(corral: Corral, task_id: str) -> bytes:
    run = (await corral.tasks.runs(task_id))[-1].run
    async with aclosing(corral.logs.read(task_id, run)) as pieces:
        return b"".join([piece async for piece in pieces])


async def test_a_full_disk_is_refused_clearly_and_survived_without_loss(up: CorralProcess) -> None:
    disk = SmallDisk(up)
    big = up.home / "big"
    big.write_bytes(os.urandom(100_000))
    pids = [up.child(role) for role in ("scheduler", "worker")]
    async with Corral(up.url, timeout_s=30.0) as corral:
        before = await corral.tasks.submit(shell("echo before"))
        await corral.tasks.wait(before.id)
        writer = await corral.tasks.submit(shell(f": {MARK}; for i in $(seq 100); do echo line $i; sleep 0.05; done"))
        async for seen in corral.tasks.watch(writer.id):
            if seen.last_run is not None and seen.last_run.started_s is not None:
                break
        accepted = [before.id, writer.id]

        disk.fill()
        error = await refusal(corral, accepted)

        assert isinstance(error, QuotaExceeded), repr(error)
        assert "disk is full" in error.message
        assert error.cure
        with pytest.raises(QuotaExceeded):
            await corral.uploads.file(big)
        shown = await corral.tasks.get(before.id)  # who only looks is served
        assert shown.phase is Phase.COMPLETED
        assert await log_of(corral, before.id) == b"before\n"
        disk.fill()
        await wait_until(lambda: not processes_with(MARK), within_s=60)  # its log and its end have nowhere to go
        assert (await corral.tasks.get(writer.id)).phase is Phase.RUNNING

        disk.free()
        after = await corral.tasks.submit(shell("echo after > out", artifacts=[{"path": "out"}]))
        accepted.append(after.id)
        ended = [await corral.tasks.wait(task_id) for task_id in accepted]
        logs = {task.id: await log_of(corral, task.id) for task in ended}

    assert {task.phase for task in ended} == {Phase.COMPLETED}
    assert logs[writer.id].decode().splitlines() == [f"line {i}" for i in range(1, 101)]
    assert [up.child(role) for role in ("scheduler", "worker")] == pids, "a full disk killed a process"
    database = shutil.copytree(disk.data, up.home / "copy") / "corral.db"
    history = read_history(database)
    assert set(history) == set(accepted)
    assert contradictions(history) == []
