"""`kill -9` of everything, again and again, while tasks run: none is lost, none ends twice, nothing is left behind.

``CORRAL_CHAOS_KILLS`` says how often each victim is killed (50), with ten tasks to every kill; ``CORRAL_CHAOS_SEED``
repeats the moments of a former run as far as a real machine can.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from corral.client import Corral
from corral.kernel.digest import Digest
from corral.kernel.errors import CorralError
from corral.kernel.ids import new_id
from corral.tasks.model import Phase, Reason, TaskDefinition
from corral.testing.history import TaskHistory, contradictions, read_history
from corral.testing.processes import (
    CorralProcess,
    fixed_addresses,
    processes_of,
    public_directory,
    sandbox_groups,
    why_no_agent,
)

T = TypeVar("T")
KILLS = int(os.environ.get("CORRAL_CHAOS_KILLS", "50"))
SEED = int(os.environ.get("CORRAL_CHAOS_SEED", "20260726"))
TASKS_PER_KILL = 10
SETTINGS = (
    *("supervisor.backoff_s=0.01", "supervisor.backoff_max_s=0.05", "supervisor.restarts=100000"),
    *("queue.lease_s=10", "fleet.lease_s=10", "join.link.retry_max_s=0.5", "worker.retry_max_s=0.5"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120 + 20 * KILLS),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]


@dataclass(frozen=True)
class Kind:
    """A kind of task, and what must have become of it."""

    make: Callable[[int, float], dict[str, Any]]
    expected: Callable[[int, TaskHistory], bool]
    retries: int = 49


def sh(script: str, **more: Any) -> dict[str, Any]:
    return {"command": ["/bin/sh", "-c", script], **more}


def completed(history: TaskHistory) -> bool:
    return history.task.life.phase is Phase.COMPLETED


def artifact_is_right(number: int, history: TaskHistory) -> bool:
    return completed(history) and history.audit[-1].artifacts == (("out", str(Digest.of(b"result %d" % number))),)


def is_flaky_to_the_end(number: int, history: TaskHistory) -> bool:
    life = history.task.life
    tried = {Reason.INTERMITTENT_TASK, Reason.CLAIM_EXPIRED}
    return life.phase is Phase.EXCEPTION and len(life.runs) == 4 and {run.reason for run in life.runs} <= tried


def failed_with_3(number: int, history: TaskHistory) -> bool:
    life = history.task.life
    return life.phase is Phase.FAILED and life.runs[-1].end is not None and life.runs[-1].end.exit_status == 3


KINDS = {
    "plain": Kind(lambda n, s: sh(f"echo begin {n}; sleep {s}; echo end {n}"), lambda n, h: completed(h)),
    "artifact": Kind(
        lambda n, s: sh(f"sleep {s}; printf 'result {n}' > out", artifacts=[{"path": "out"}]), artifact_is_right
    ),
    "failing": Kind(lambda n, s: sh(f"sleep {s}; exit 3"), failed_with_3),
    "flaky": Kind(lambda n, s: sh("exit 75", retry_statuses=[75]), is_flaky_to_the_end, retries=3),
    "dependent": Kind(lambda n, s: sh(f"echo begin {n}; echo end {n}"), lambda n, h: completed(h)),
    "canceled": Kind(lambda n, s: sh("trap '' TERM; sleep 60"), lambda n, h: h.task.life.reason is Reason.CANCELED),
}
BATCH = ("plain", "artifact", "dependent", "plain", "flaky", "plain", "artifact", "failing", "plain", "canceled")


@dataclass
class Crowd:
    """Users: they submit, cancel and look, and repeat each request until it is answered."""

    corral: Corral
    chance: random.Random
    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)
    final: dict[str, Phase] = field(default_factory=dict)

    async def submit(self, batch: int) -> None:
        ids = [new_id("task", now_s=time.time()) for _ in BATCH]
        first = batch * len(BATCH)
        definitions = [
            TaskDefinition(
                payload=KINDS[kind].make(first + place, round(self.chance.uniform(0.0, 0.3), 2)),
                name=f"{kind}-{first + place}",
                dependencies=(ids[0], ids[1]) if kind == "dependent" else (),
                retries=KINDS[kind].retries,
            )
            for place, kind in enumerate(BATCH)
        ]
        key = f"batch-{batch}"
        accepted = await answered(lambda: self.corral.tasks.submit_all(definitions, ids=ids, idempotency_key=key))
        assert [task.id for task in accepted] == ids
        self.kinds.update((task_id, (first + place, BATCH[place])) for place, task_id in enumerate(ids))
        await asyncio.sleep(self.chance.uniform(0.0, 1.0))
        canceled = await answered(lambda: self.corral.tasks.cancel(ids[BATCH.index("canceled")]))
        self.final[canceled.id] = canceled.phase

    async def look(self) -> None:
        """Remember what is final: it must stay so."""
        known = dict(self.final)  # before the question: an answer may be older than what another one told meanwhile
        after = ""
        while True:
            page = await answered(partial(self.corral.tasks.page, limit=1000, after=after))
            for task in page.tasks:
                assert known.get(task.id, task.phase) is task.phase, f"{task.id} was {known[task.id]}"
                if task.phase.final:
                    self.final[task.id] = task.phase
            after = page.next
            if not after:
                return


async def answered(ask: Callable[[], Awaitable[T]], *, within_s: float = 120.0) -> T:
    """Ask again and again while there is nobody to answer."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await ask()
            except CorralError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(0.05)


class Killer:
    """Knows when a victim serves again, and kills it at a random moment from then on, or earlier."""

    def __init__(self, up: CorralProcess, corral: Corral, victim: str, chance: random.Random) -> None:
        self._up = up
        self._corral = corral
        self._victim = victim
        self._chance = chance
        self._killed_s = 0.0
        self._killed_pid = 0

    async def strike(self) -> None:
        if self._chance.random() < 0.2:
            await self._until(self._is_there)
            await asyncio.sleep(self._chance.uniform(0.0, 1.5))  # while it starts
        else:
            await self._until(self._serves)
            await asyncio.sleep(self._chance.uniform(0.0, 0.5))
        self._killed_s = time.time()
        if self._victim == "up":
            self._up.kill()
            self._up.start_nowait()
            return
        process = self._up.child(self._victim)
        if process is not None:  # else it died at another's hand, as a worker may without its scheduler
            self._killed_pid = process.pid
            process.send_signal(signal.SIGKILL)

    async def _until(self, condition: Callable[[], Awaitable[bool]], within_s: float = 90.0) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not await condition():  # noqa: ASYNC110 (another process; nothing to wait on)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"the {self._victim} does not come back:\n{self._up.words()[-8000:]}") from None

    async def _is_there(self) -> bool:
        if self._victim == "up":
            return True
        process = self._up.child(self._victim)
        return process is not None and process.pid != self._killed_pid

    async def _serves(self) -> bool:
        if self._victim == "up":
            self._up.check_alive()
        if not await self._is_there():
            return False
        try:
            workers = await self._corral.workers.list()
        except CorralError as error:
            assert error.retryable, error
            return False
        return any(each.state == "ready" and (each.registered_s or 0.0) > self._killed_s for each in workers)


@pytest.fixture
def home() -> Iterator[Path]:
    with public_directory() as path:
        yield path


async def test_whoever_is_killed_no_task_is_lost_and_none_ends_twice(home: Path) -> None:
    mounts = mounted()
    async with asyncio.TaskGroup() as worlds:  # at once: each alone waits for one process to start at a time
        for victim in ("scheduler", "worker", "up"):
            worlds.create_task(ordeal(home / victim, victim), name=victim)

    assert mounted() == mounts


async def ordeal(home: Path, victim: str) -> None:
    """A Corral of its own, whose ``victim`` is killed again and again."""
    chance = random.Random(f"{SEED} {victim}")
    up = CorralProcess("up", home, *fixed_addresses(), *SETTINGS)
    try:
        up.start_nowait()
        await until(up.is_ready, up)
        async with Corral(up.url, timeout_s=10.0) as corral:
            crowd = Crowd(corral, chance)
            await suffer(up, corral, crowd, victim, chance)
            await all_resolved(crowd)
            logs = {task_id: await log_of(corral, task_id) for task_id in tasks_with_log(crowd)}
        processes = up.process.children(recursive=True)
    finally:
        status = await asyncio.to_thread(up.stop)
        sys.stdout.write(complaints(up.log.read_text(errors="replace")))

    assert status == 0
    check_history(crowd, read_history(up.data / "corral.db"), logs)
    if victim != "scheduler":  # its death hurts no run; the others' must, or this test proves nothing
        life = [each.task.life for each in read_history(up.data / "corral.db").values()]
        assert sum(run.reason is Reason.CLAIM_EXPIRED for each in life for run in each.runs) >= KILLS // 2
    assert [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
    assert left_behind(up) == {}


def check_history(crowd: Crowd, history: dict[str, TaskHistory], logs: dict[str, bytes]) -> None:
    """All that was accepted is there, ended once and as it must, and the users saw no other end."""
    assert set(history) == set(crowd.kinds), "tasks were lost, or made twice"
    assert contradictions(history) == []
    assert [task_id for task_id, phase in crowd.final.items() if history[task_id].task.life.phase is not phase] == []
    surprises = {
        task_id: (kind, *(f"{event.kind}: {event.text}" for event in history[task_id].story))
        for task_id, (number, kind) in crowd.kinds.items()
        if not KINDS[kind].expected(number, history[task_id])
    }
    assert surprises == {}
    assert {crowd.kinds[task_id][0]: text for task_id, text in logs.items()} == {
        number: f"begin {number}\nend {number}\n".encode() for number in (crowd.kinds[task_id][0] for task_id in logs)
    }
    assert dependents_waited(history) == []


async def until(condition: Callable[[], bool], up: CorralProcess, *, within_s: float = 90.0) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 (another process; nothing to wait on)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it did not start:\n{up.words()}") from None


async def suffer(up: CorralProcess, corral: Corral, crowd: Crowd, victim: str, chance: random.Random) -> None:
    killer = Killer(up, corral, victim, chance)
    async with asyncio.TaskGroup() as users:
        for number in range(KILLS):
            users.create_task(crowd.submit(number))
            await killer.strike()
            if number % 5 == 0:
                users.create_task(crowd.look())


async def all_resolved(crowd: Crowd) -> None:
    async with asyncio.timeout(180):
        while True:
            await crowd.look()
            if len(crowd.final) == len(crowd.kinds):
                return
            await asyncio.sleep(0.2)


def tasks_with_log(crowd: Crowd) -> list[str]:
    """Those that completed, as all of these kinds should."""
    return [
        task_id
        for task_id, (_, kind) in crowd.kinds.items()
        if kind in ("plain", "dependent") and crowd.final[task_id] is Phase.COMPLETED
    ]


async def log_of(corral: Corral, task_id: str) -> bytes:
    task = await corral.tasks.get(task_id)
    assert task.last_run is not None
    async with aclosing(corral.logs.read(task_id, task.last_run.run)) as pieces:
        return b"".join([piece async for piece in pieces])


def dependents_waited(history: dict[str, TaskHistory]) -> list[str]:
    """Tasks that were claimed before what they depend on was resolved."""
    return [
        task_id
        for task_id, each in history.items()
        for needed in each.task.definition.dependencies
        for run in each.task.life.runs
        if run.claimed_s is not None and run.claimed_s < (history[needed].task.life.resolved_s or float("inf"))
    ]


def complaints(log: str) -> str:
    """What is worth reading when the test has failed."""
    return "\n".join(line for line in log.splitlines() if "level=info" not in line)[-30_000:]


def mounted() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())


def left_behind(up: CorralProcess) -> dict[str, list[str]]:
    """What a stopped `corral up` must not leave; empty when all is well."""
    folders = ("spool", "sandboxes/boxes", "sandboxes/work")
    half_done = [str(path) for path in up.data.rglob("*") if path.suffix in (".packed", ".temporary", ".new", ".part")]
    found = {
        "processes": processes_of(up.home),
        "control groups": sandbox_groups(up.data),
        "temporary files": [str(path) for path in up.temporary.iterdir()],
        "leftovers": [str(path) for folder in folders for path in (up.data / folder).glob("*")],
        "half-done files": half_done,
    }
    return {what: which for what, which in found.items() if which}
