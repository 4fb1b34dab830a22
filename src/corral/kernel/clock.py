"""Time comes in through the door, so that tests can turn it.

Two clocks, never mixed: *wall* time (Unix seconds) for what people and other machines read, *monotonic* time
for durations and deadlines inside one process.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where a service reads the time."""

    def now_s(self) -> float:
        """Wall time, Unix seconds. May jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


class LoopClock:
    """Both clocks follow the running event loop, so that a virtual loop (looptime) turns them.

    ``epoch_s`` is the Unix time of the loop's zero.
    """

    def __init__(self, epoch_s: float = 1_800_000_000.0) -> None:
        self._epoch_s = epoch_s

    def now_s(self) -> float:
        return self._epoch_s + asyncio.get_running_loop().time()

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()
