"""Durable no-op tasks through the whole of `corral up`, against Dramatiq with Redis; and the time to a start."""

import time
from collections.abc import Sequence
from statistics import median

import uvloop

from bench.report import Row, milliseconds, p50
from bench.server import Server, running
from corral.client import Corral
from corral.tasks.model import Phase, TaskDefinition

_TASKS = 5000
_BATCH = 100
_ROUNDS = 5
_REDIS = {"in memory": False, "fsync": True}  # how the peer's queue is kept, and whether it then lasts
_LOOK_EVERY_S = 0.02  # a question about the tasks costs the scheduler as much as a task
_COMMAND = "/bin/true"
_STEADY_RATE = 50.0
_STEADY_TASKS = 500
_START_BOUND_S = 0.010
_NOOP = TaskDefinition(payload={"command": [_COMMAND]}, expires_s=86_400)


async def _ended(corral: Corral, last_id: str) -> None:
    """All have ended: first a look now and then at whether the last was begun, then often at what is left."""
    while (await corral.tasks.get(last_id)).phase is Phase.PENDING:
        time.sleep(0.2)  # nothing else runs in this process
    for phase in (Phase.PENDING, Phase.RUNNING):
        while (await corral.tasks.page(phase=phase.value, limit=1)).tasks:
            time.sleep(_LOOK_EVERY_S)


async def _throughput(server: Server) -> float:
    async with Corral(server.url) as corral:
        await corral.tasks.wait((await corral.tasks.submit(_NOOP)).id)  # a sandbox is warm
        began_s = time.perf_counter()
        for _ in range(_TASKS // _BATCH):
            accepted = await corral.tasks.submit_all([_NOOP] * _BATCH)
        await _ended(corral, accepted[-1].id)
        took_s = time.perf_counter() - began_s
        failed = [*(await corral.tasks.page(phase="failed")).tasks, *(await corral.tasks.page(phase="exception")).tasks]
        if failed:
            raise RuntimeError(f"{failed[0].id} ended as {failed[0].phase}")
    return _TASKS / took_s


async def _starts(server: Server) -> list[float]:
    waits = []
    async with Corral(server.url) as corral:
        ids = []
        next_s = time.perf_counter()
        for _ in range(_STEADY_TASKS):
            ids.append((await corral.tasks.submit(_NOOP)).id)
            next_s += 1 / _STEADY_RATE
            time.sleep(max(0.0, next_s - time.perf_counter()))
        for task_id in ids:
            task = await corral.tasks.wait(task_id)
            run = task.last_run
            if run is None or run.started_s is None:
                raise RuntimeError(f"{task_id} was never started")
            waits.append(run.started_s - task.created_s)
    return waits


def _spread(rates: Sequence[float]) -> str:
    return f"{median(rates):.0f}/s ({min(rates):.0f}–{max(rates):.0f})"


def measure() -> Sequence[Row]:
    """All rows of this page."""
    from bench import dramatiq_peer  # noqa: PLC0415 (the peer is an extra: others measure without it)

    rates: dict[str, list[float]] = {"ours": [], "in memory": [], "fsync": []}
    for _ in range(_ROUNDS):  # in turns: whatever else the machine does meets them all alike
        with running() as server:
            rates["ours"].append(uvloop.run(_throughput(server)))
        for redis, durable in _REDIS.items():
            rates[redis].append(dramatiq_peer.rate(_TASKS, _COMMAND, durable=durable))
    ours = median(rates["ours"])
    rows = []
    for redis in _REDIS:
        peer = median(rates[redis])
        rows.append(
            Row(
                what=f"{_TASKS} durable no-op tasks, submitted in batches of {_BATCH} to resolved, median of {_ROUNDS}",
                ours=_spread(rates["ours"]),
                against=f"Dramatiq 2 + Redis ({redis}) {_spread(rates[redis])}",
                ratio=f"{ours / peer:.2f} ×",
                bound="> 1 ×",
                ok=ours > peer,
            )
        )
    with running() as server:
        wait_s = p50(uvloop.run(_starts(server)))
    rows.append(
        Row(
            what=f"submit to start at {_STEADY_RATE:.0f} tasks/s, p50",
            ours=milliseconds(wait_s),
            against="",
            ratio="",
            bound=f"< {_START_BOUND_S * 1000:.0f} ms",
            ok=wait_s < _START_BOUND_S,
        )
    )
    return rows
