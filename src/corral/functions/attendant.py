"""The worker's side: make the instances what the scheduler says they should be, and tell what they are.

While the scheduler is away, everything goes on as it was told last: instances live, and the front has its routes.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from corral.functions.model import (
    FunctionsOrders,
    FunctionsReport,
    InstanceOrder,
    InstancePhase,
    InstanceReport,
    LogLine,
    Prepared,
    PrepareOrder,
    RevisionKey,
)
from corral.functions.ports import FunctionsHost
from corral.functions.routing import RoutingUpdate

_LIVE: Final = (InstancePhase.STARTING, InstancePhase.READY)
_OVER: Final = (InstancePhase.STOPPED, InstancePhase.FAILED)
_LINES_MAX: Final = 5_000
_LINES_PER_MESSAGE: Final = 500
_LINGER_S: Final = 0.2  # other fronts learn first that an instance is no longer to be used
_log = structlog.get_logger("corral.functions.worker")


@dataclass(frozen=True, slots=True)
class Steps:
    """What turns what is into what should be."""

    start: tuple[InstanceOrder, ...] = ()
    stop: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    prepare: tuple[PrepareOrder, ...] = ()


def steps(
    orders: FunctionsOrders,
    reports: Collection[InstanceReport],
    *,
    preparing: Collection[RevisionKey],
    letting_go: Collection[str],
) -> Steps:
    """Compare. An instance that failed is reported until the scheduler has heard of it and orders it no more."""
    ordered = {each.id for each in orders.instances}
    known = {each.id for each in reports}
    unwanted = [each for each in reports if each.id not in ordered]
    return Steps(
        start=tuple(each for each in orders.instances if each.id not in known),
        stop=tuple(each.id for each in unwanted if each.phase in _LIVE and each.id not in letting_go),
        forget=tuple(each.id for each in unwanted if each.phase in _OVER),
        prepare=tuple(each for each in orders.prepare if each.key not in preparing),
    )


class Attendant:
    """See the module. ``changed`` is called when the scheduler should hear at once."""

    def __init__(self, host: FunctionsHost, *, draining: Callable[[], bool]) -> None:
        self._host = host
        self._draining = draining
        self._orders: FunctionsOrders | None = None
        self._drain_s = 30.0
        self._ordered = asyncio.Event()
        self._letting_go: set[str] = set()
        self._prepared: dict[RevisionKey, Prepared | None] = {}
        self._lines: deque[LogLine] = deque()
        self.lines_dropped = 0
        self.want_routes = True
        self.news = asyncio.Event()
        host.connect(on_change=self._changed, on_log=self._take_line)

    def report(self) -> FunctionsReport:
        """What is."""
        epoch, version = self._host.routes_in_use()
        return FunctionsReport(
            capacity=self._host.capacity(),
            instances=tuple(self._host.reports()),
            prepared=tuple(each for each in self._prepared.values() if each is not None),
            demands=tuple(self._host.demands()),
            draining=self._draining(),
            routes_epoch=epoch,
            routes_version=version,
        )

    def take_lines(self) -> tuple[Sequence[LogLine], int]:
        """Lines for the scheduler, and how many were lost since the last call."""
        lines = [self._lines.popleft() for _ in range(min(len(self._lines), _LINES_PER_MESSAGE))]
        dropped, self.lines_dropped = self.lines_dropped, 0
        return lines, dropped

    @property
    def lines_waiting(self) -> bool:
        """True when there is more to send."""
        return bool(self._lines)

    def ordered(self, orders: FunctionsOrders, *, drain_s: float) -> None:
        """The scheduler says what should be."""
        self._orders, self._drain_s = orders, drain_s
        self._ordered.set()

    def routed(self, update: RoutingUpdate) -> None:
        """The scheduler says where requests go; when an update is missing, the whole table is asked for."""
        if not self._host.update_routes(update):
            self.want_routes = True
            self.news.set()

    async def run(self) -> None:
        """Carry out what is ordered, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._ordered.wait()
                self._ordered.clear()
                if self._orders is not None:
                    await self._follow(self._orders, group)

    async def _follow(self, orders: FunctionsOrders, group: asyncio.TaskGroup) -> None:
        wanted = {each.key for each in orders.prepare}
        self._prepared = {key: answer for key, answer in self._prepared.items() if key in wanted or answer is None}
        reports = self._host.reports()
        self._letting_go &= {each.id for each in reports}
        todo = steps(orders, reports, preparing=self._prepared.keys(), letting_go=self._letting_go)
        for order in todo.start:
            await self._host.start(order)
        for instance_id in todo.stop:
            self._letting_go.add(instance_id)
            group.create_task(self._let_go(instance_id), name=f"stop:{instance_id}")
        for instance_id in todo.forget:
            self._host.forget(instance_id)
        for prepare in todo.prepare:
            self._prepared[prepare.key] = None
            group.create_task(self._prepare(prepare), name="prepare")
        if todo.forget:
            self.news.set()

    async def _let_go(self, instance_id: str) -> None:
        await asyncio.sleep(_LINGER_S)
        await self._host.stop(instance_id, drain_s=self._drain_s)

    async def _prepare(self, order: PrepareOrder) -> None:
        try:
            answer = await self._host.prepare(order)
        except Exception as error:  # noqa: BLE001 - a boundary: one program must not end the worker
            _log.error("prepare-failed", revision=order.key.revision, exc_info=error)
            answer = Prepared(key=order.key, code="engine-lost", text="the engine failed; see the worker's log")
        self._prepared[order.key] = answer
        self.news.set()

    def _changed(self) -> None:
        self.news.set()
        self._ordered.set()  # what is over may be forgotten now, what was lost started

    def _take_line(self, line: LogLine) -> None:
        if len(self._lines) >= _LINES_MAX:
            self._lines.popleft()
            self.lines_dropped += 1
        self._lines.append(line)
        self.news.set()
