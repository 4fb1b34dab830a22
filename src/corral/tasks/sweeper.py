"""The sweeper: steps every task for which the clock, or a dependency, matters; a bounded batch at a time."""

from corral.kernel.clock import Clock
from corral.kernel.errors import DependencyError
from corral.tasks.queue import Queue

_FORGET_EVERY_S = 60.0


async def run_sweeper(queue: Queue, clock: Clock) -> None:
    """Sweep until canceled: every ``limits.sweep_every_s``, and at once when dependents became due.

    A database that does not answer is asked again at the next turn: leases and deadlines wait in it.

    Cancellation: safe; a batch is stepped entirely or not at all.
    """
    forget_at_s = clock.monotonic_s()
    while True:
        signal = queue.signals.due
        try:
            if clock.monotonic_s() >= forget_at_s:
                await queue.forget_old_keys()
                forget_at_s = clock.monotonic_s() + min(_FORGET_EVERY_S, queue.limits.idempotency_s)
            full = await queue.sweep() >= queue.limits.sweep_tasks
        except DependencyError as error:
            queue.signals.sweeper_error = str(error)
            full = False
        else:
            queue.signals.sweeper_error = ""
        if not full:
            await signal.wait_notified(within_s=queue.limits.sweep_every_s)
