"""The slots that a client holds on the fleet: asked for in batches, used again and again, given back when idle.

One question to the scheduler is under way at a time, for as many slots as somebody waits for; so a build of thousands
of files asks a handful of times. Who finds the fleet full while we hold slots waits for one of these; who finds it
full while we hold none is told so at once, and compiles here.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from corral.compile.remote.model import Routes, WorkerRoute
from corral.kernel.clock import Clock
from corral.kernel.errors import CorralError, NoFeasibleWorker

_MARGIN_S: Final = 30.0
_AGAIN_S: Final = 1.0

Start = Callable[[Coroutine[Any, Any, None]], None]


@dataclass(slots=True)
class Slot:
    """The right to run one thing on a worker."""

    route: WorkerRoute
    used_s: float = 0.0
    failed: bool = False


@dataclass(slots=True)
class _Held:
    """A route, all instants in steady time."""

    route: WorkerRoute
    free: int
    used_s: float
    until_s: float


class Slots:
    """See the module. ``tick`` is called every second or so; ``start`` runs a coroutine beside."""

    def __init__(
        self, routes: Routes, clock: Clock, start: Start, *, image: str, slots_max: int, idle_s: float
    ) -> None:
        self._routes = routes
        self._clock = clock
        self._start = start
        self._image = image
        self._slots_max = slots_max
        self._idle_s = idle_s
        self._held: dict[str, _Held] = {}
        self._waiting: deque[asyncio.Future[Slot]] = deque()
        self._asking = False
        self._closed = False
        self._full_until_s = 0.0
        self.avoid: dict[str, float] = {}

    @property
    def in_use(self) -> int:
        """Slots that somebody has now."""
        return sum(each.route.slots - each.free for each in self._held.values())

    async def acquire(self) -> Slot:
        """A slot, as soon as there is one.

        Raises: NoFeasibleWorker when the fleet is full and we hold nothing of it, and after :meth:`close`; what
        ``Routes.route`` raises.
        Cancellation: nothing is held.
        """
        if self._closed:
            raise _ends()
        slot = self._take_free()
        if slot is not None:
            return slot
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._ask()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(future.result())
            raise

    def give_back(self, slot: Slot) -> None:
        """The slot is free; a failed one takes its whole route with it."""
        held = self._held.get(slot.route.id)
        if held is None:
            return
        held.free += 1
        held.used_s = self._clock.monotonic_s()
        if slot.failed:
            self.avoid[slot.route.worker_id] = self._clock.monotonic_s() + _MARGIN_S
            self._drop(slot.route.id)
        self._serve()
        self._ask()

    def tick(self) -> None:
        """Give back what is idle or about to end."""
        now_s = self._clock.monotonic_s()
        self.avoid = {worker: until_s for worker, until_s in self.avoid.items() if until_s > now_s}
        for held in list(self._held.values()):
            idle = held.free == held.route.slots and held.used_s + self._idle_s < now_s
            if idle or (self._ends_soon(held) and held.free == held.route.slots):
                self._drop(held.route.id)
        self._ask()

    async def close(self) -> None:
        """Give everything back. Raises nothing: what is not given back ends by itself."""
        self._closed = True
        ids, self._held = list(self._held), {}
        self._fail(_ends())
        await self._release(ids)

    def _take_free(self) -> Slot | None:
        usable = [each for each in self._held.values() if each.free and not self._ends_soon(each)]
        if not usable:
            return None
        held = max(usable, key=lambda each: each.free / each.route.slots)
        held.free -= 1
        held.used_s = self._clock.monotonic_s()
        return Slot(held.route, held.used_s)

    def _serve(self) -> None:
        while self._waiting:
            if self._waiting[0].done():
                self._waiting.popleft()
            elif (slot := self._take_free()) is None:
                return
            else:
                self._waiting.popleft().set_result(slot)

    def _ask(self) -> None:
        wanted = sum(not each.done() for each in self._waiting)
        room = self._slots_max - sum(each.route.slots for each in self._held.values())
        if self._asking or self._closed or not wanted or room <= 0:
            return
        if self._held and self._clock.monotonic_s() < self._full_until_s:
            return
        self._asking = True
        self._start(self._ask_for(min(wanted, room)))

    async def _ask_for(self, count: int) -> None:
        try:
            await asyncio.sleep(0)  # whoever asks in the same moment is counted in
            count = max(count, min(sum(not each.done() for each in self._waiting), self._slots_max))
            asked_s = self._clock.monotonic_s()
            found = await self._routes.route(image=self._image, slots=count, avoid=tuple(self.avoid))
            if self._closed:
                await self._release([route.id for route in found])
                return
            now_s = self._clock.monotonic_s()
            for route in found:
                self._held[route.id] = _Held(route, route.slots, now_s, asked_s + route.expires_in_s)
            self._serve()
        except CorralError as error:
            self._full_until_s = self._clock.monotonic_s() + _AGAIN_S
            if not self._held:
                self._fail(error)
        finally:
            self._asking = False

    def _fail(self, error: CorralError) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)

    def _drop(self, route_id: str) -> None:
        if self._held.pop(route_id, None) is not None:
            self._start(self._release([route_id]))

    async def _release(self, route_ids: list[str]) -> None:
        if not route_ids:
            return
        try:
            await self._routes.release(route_ids)
        except CorralError:
            return  # the promise ends with its token

    def _ends_soon(self, held: _Held) -> bool:
        return held.until_s < self._clock.monotonic_s() + _MARGIN_S


def _ends() -> NoFeasibleWorker:
    return NoFeasibleWorker("the daemon ends")
