"""The sweeper: steps every task for which the clock, or a dependency, matters; a bounded batch at a time."""

from typing import Final

from corral.kernel.clock import Clock
from corral.kernel.errors import DependencyError
from corral.tasks.queue import Queue

_FORGET_EVERY_S: Final = 60.0


async def run_sweeper(queue: Queue, clock: Clock) -> None:
    """Sweep until canceled: every ``limits.sweep_every_s`` while tasks move, and at once when dependents became due.

    A database that does not answer is asked again at the next turn: leases and deadlines wait in it.

    Cancellation: safe; a batch is stepped entirely or not at all.
    """
    forget_at_s = clock.monotonic_s()
    while True:
        due, changed = queue.signals.due, queue.signals.changed
        changes = changed.count
        asleep_s = 0.0
        try:
            if clock.monotonic_s() >= forget_at_s:
                await queue.forget_old_keys()
                forget_at_s = clock.monotonic_s() + min(_FORGET_EVERY_S, queue.limits.idempotency_s)
            full = await queue.sweep() >= queue.limits.sweep_tasks
            if not (full or queue.shared or changed.count > changes):
                asleep_s = await _nothing_due_s(queue, clock, most_s=forget_at_s - clock.monotonic_s())
        except DependencyError as error:
            queue.signals.sweeper_error = str(error)
            full = False
        else:
            queue.signals.sweeper_error = ""
        if full or await due.wait_notified(within_s=queue.limits.sweep_every_s):
            continue
        if changed.count == changes and (left_s := asleep_s - queue.limits.sweep_every_s) > 0:
            await changed.wait_notified(within_s=left_s)


async def _nothing_due_s(queue: Queue, clock: Clock, *, most_s: float) -> float:
    """For how long no task is due if none changes: a scheduler that is alone need not look before."""
    next_s = await queue.next_due_s()
    return most_s if next_s is None else min(most_s, next_s - clock.now_s())
