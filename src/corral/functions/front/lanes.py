"""Lanes: all that a front does happens on one thread, and no tenant may have that for long.

Each tenant has a lane: its sockets, in an epoll of their own, and work that was put off. In one turn of the event loop
a lane may use the thread for ``turn_s``, and lanes that want more than that share it; what is ready beyond stays in the
kernel until the next turn. So whoever asks now and then waits for a short turn at most, whatever others ask for.
"""

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

NOBODY: Final = ""
"""The tenant of what is no tenant's: connections that have not asked yet, and requests that lead nowhere."""

_EVENTS: Final = 32


class Watched(Protocol):
    """Who has a socket in a lane."""

    def happened(self, events: int) -> None:
        """What epoll says of it; it may be out of date."""
        ...

    def flush(self) -> None:
        """Send what was written in this turn."""
        ...


class Lane:
    """One tenant's. Nothing here is called back but in its turn."""

    __slots__ = (
        "_clock",
        "_ends_s",
        "_epoll",
        "_events",
        "_flushes",
        "_full",
        "_lanes",
        "_left",
        "_loop",
        "_running",
        "_scheduled",
        "_users",
        "_watched",
        "_wrote",
    )

    def __init__(self, lanes: "Lanes", clock: Callable[[], float]) -> None:
        self._lanes, self._clock = lanes, clock
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._readable)
        self._watched: dict[int, Watched] = {}
        self._events: deque[tuple[int, int]] = deque()  # of the last look, not told yet
        self._left: deque[Callable[[], None]] = deque()
        self._wrote: list[Watched] = []
        self._ends_s = 0.0
        self._users = 0
        self._running = self._scheduled = self._flushes = self._full = False

    def enter(self) -> None:
        """Somebody has a socket that is to be watched here, now or later."""
        self._users += 1

    def leave(self) -> None:
        """The socket of somebody who entered is gone."""
        self._users -= 1

    def watch(self, number: int, who: Watched, events: int) -> None:
        """Tell ``who`` of these events of a socket; 0: of none any more."""
        known = number in self._watched
        if events and known:
            self._epoll.modify(number, events)
        elif events:
            self._epoll.register(number, events)
            self._watched[number] = who
        elif known:
            self._epoll.unregister(number)
            del self._watched[number]

    def wrote(self, who: Watched) -> None:
        """Let it flush at the end of this turn."""
        self._wrote.append(who)
        if not self._running and not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush)

    def put_off(self, rest: Callable[[], None]) -> None:
        """Do the rest in the next turn, before anything new is looked at."""
        self._left.append(rest)
        if not self._running:
            self._schedule()

    @property
    def over(self) -> bool:
        """Whether what is not done yet is to be put off; outside of the lane's turn it is."""
        return self._clock() >= self._ends_s

    @property
    def unused(self) -> bool:
        return not (self._users or self._left or self._wrote)

    def close(self) -> None:
        """Of an unused one: free its epoll."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _readable(self) -> None:
        if not self._scheduled:
            self._turn()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._scheduled = False
        self._turn()

    def _turn(self) -> None:
        """At least one thing is done in each."""
        if self._epoll.closed:
            return
        self._ends_s = self._clock() + self._lanes.part_s
        self._running = True
        try:
            while self._next() and not self.over:
                pass
        finally:
            self._running, self._ends_s = False, 0.0
            full = bool(self._left or self._events)
            self._lanes.full += full - self._full
            self._full = full
            if full:
                self._schedule()
            self._flush()

    def _next(self) -> bool:
        """Do one thing; False when there was none."""
        if self._left:
            self._left.popleft()()
            return True
        if not self._events:
            self._events.extend(self._epoll.poll(0, _EVENTS))
            if not self._events:
                return False
        number, events = self._events.popleft()
        who = self._watched.get(number)
        if who is not None:
            who.happened(events)
        return True

    def _flush(self) -> None:
        self._flushes = False
        while self._wrote:
            wrote, self._wrote = self._wrote, []
            for who in wrote:
                who.flush()


class Lanes:
    """All of a front's, by tenant. ``full``: how many have more to do than a turn takes."""

    def __init__(self, turn_s: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.full = 0
        self._turn_s, self._clock = turn_s, clock
        self._lanes: dict[str, Lane] = {}

    @property
    def part_s(self) -> float:
        """How long each lane may use the thread in one turn."""
        return self._turn_s / max(1, self.full)

    def of(self, tenant: str) -> Lane:
        """The lane of this tenant."""
        found = self._lanes.get(tenant)
        if found is None:
            found = self._lanes[tenant] = Lane(self, self._clock)
        return found

    def keep(self, tenants: set[str]) -> None:
        """Free the lanes of all others that nobody uses."""
        for tenant in [each for each, lane in self._lanes.items() if lane.unused and each not in tenants]:
            self._lanes.pop(tenant).close()
