"""Who may enter a revision now: places in its instances, a bounded queue before them, and requests per second.

Pure but for the deque: nothing here waits or knows the time by itself.
"""

from collections import deque
from typing import Final, Generic, TypeVar

from corral.functions.model import Limits

TRACES_PER_S: Final = 10.0
Waiter = TypeVar("Waiter")


class Bucket:
    """Filled with ``rate`` tokens a second; one second's worth fits in."""

    def __init__(self, rate: float, now_s: float) -> None:
        self._rate, self._counted_s = rate, now_s
        self._tokens = self._room = max(1.0, rate)

    def take(self, now_s: float) -> bool:
        """Take one; False when there is none."""
        self._tokens = min(self._room, self._tokens + (now_s - self._counted_s) * self._rate)
        self._counted_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Admission(Generic[Waiter]):
    """One revision at one front. ``in_flight`` is by instance; ``waiting`` in the order of arrival."""

    def __init__(self, limits: Limits, now_s: float) -> None:
        self.limits = limits
        self.in_flight: dict[str, int] = {}
        self.waiting: deque[Waiter] = deque()
        self._requests = Bucket(limits.requests_per_s, now_s)
        self._traces = Bucket(TRACES_PER_S, now_s)

    def load(self, instance: str) -> int:
        """Requests that this front has in flight there."""
        return self.in_flight.get(instance, 0)

    @property
    def total(self) -> int:
        return sum(self.in_flight.values())

    def has_room(self, instance: str) -> bool:
        return self.in_flight.get(instance, 0) < self.limits.concurrency

    def within_rate(self, now_s: float) -> bool:
        """Whether one more request keeps to ``requests_per_s``; True without a limit."""
        return not self.limits.requests_per_s or self._requests.take(now_s)

    def may_trace(self, now_s: float) -> bool:
        """Whether one more trace is kept: callers ask for them, and they go into the owner's log."""
        return self._traces.take(now_s)

    def enter(self, instance: str) -> None:
        self.in_flight[instance] = self.in_flight.get(instance, 0) + 1

    def leave(self, instance: str) -> None:
        left = self.in_flight.get(instance, 0) - 1
        if left > 0:
            self.in_flight[instance] = left
        else:
            self.in_flight.pop(instance, None)

    def wait(self, waiter: Waiter) -> bool:
        """Join the queue; False when it is full."""
        if len(self.waiting) >= self.limits.queue:
            return False
        self.waiting.append(waiter)
        return True
