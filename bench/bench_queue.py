"""The queue alone on SQLite with fsync: submit, claim, report started and completed, in batches.

python bench/bench_queue.py [tasks]
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Mapping

from corral.database.engine import Database
from corral.database.version import migrate
from corral.kernel.clock import SystemClock
from corral.tasks.model import Phase, Resolved, RunReport, Started, TaskDefinition
from corral.tasks.ports import RunRef, TenantTerms
from corral.tasks.queue import Queue

SUBMITTED_TOGETHER = 100
CLAIMED_TOGETHER = 32


class OneTenant:
    """A tenant with the default terms and no secrets."""

    def names(self) -> Collection[str]:
        return ("default",)

    def terms(self, tenant: str) -> TenantTerms:
        return TenantTerms()

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        return {}


async def submit_all(queue: Queue, count: int) -> None:
    definition = TaskDefinition(payload={"command": ["/bin/true"], "max_run_time": "10m"})
    for start in range(0, count, SUBMITTED_TOGETHER):
        await queue.submit("default", [definition] * min(SUBMITTED_TOGETHER, count - start))


async def work_all(queue: Queue, count: int) -> None:
    done = 0
    while done < count:
        claims = await queue.claim("wrk_bench", CLAIMED_TOGETHER, wait_s=1.0)
        reports: list[tuple[RunRef, RunReport]] = []
        for claim in claims:
            now_s = time.time()
            reports.append((claim.ref, Started(at_s=now_s)))
            reports.append((claim.ref, Resolved(at_s=now_s, phase=Phase.COMPLETED, exit_status=0, argv=("/bin/true",))))
        refused = [error for error in await queue.report("wrk_bench", reports) if error is not None]
        if refused:
            raise refused[0]
        done += len(claims)


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/corral.db"
        await migrate(url)
        async with Database.open(url) as database:
            queue = Queue(database, SystemClock(), OneTenant())
            started_s, cpu_s = time.perf_counter(), time.process_time()
            await submit_all(queue, count)
            submitted_s = time.perf_counter() - started_s
            await work_all(queue, count)
            total_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
            waits = []
            for _ in range(100):
                at_s = time.perf_counter()
                async with asyncio.TaskGroup() as both:
                    both.create_task(work_all(queue, 1))
                    both.create_task(submit_all(queue, 1))
                waits.append(time.perf_counter() - at_s)
    print(f"{count} tasks: submitted {count / submitted_s:.0f}/s, submitted to resolved {count / total_s:.0f}/s")
    print(f"one task alone, submitted to resolved: p50 {statistics.median(waits) * 1e3:.2f} ms")
    print(f"cpu per task {cpu_s / count * 1e6:.0f} us")


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
