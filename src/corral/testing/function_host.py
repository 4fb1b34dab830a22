"""A worker's engine and front without any Wasm, for tests: instances answer with the name of their revision.

``call`` is a client at the front: it waits for an instance as a real front does, asks again elsewhere twice when one
dies under it, and gives (status, revision, instance).
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from corral.functions.model import (
    Demand,
    EngineCapacity,
    InstanceOrder,
    InstancePhase,
    InstanceReport,
    Kind,
    LogLine,
    Prepared,
    PrepareOrder,
    RevisionKey,
)
from corral.functions.routing import NoRoute, Routed, Router, RoutingTable, RoutingUpdate, applied
from corral.kernel.concurrency import Signal

_TRIES: Final = 3


@dataclass(slots=True)
class MemoryNetwork:
    """Where fronts reach the instances of all workers."""

    hosts: dict[str, "MemoryHost"] = field(default_factory=dict)


class MemoryHost:
    """See the module, and ``ports.FunctionsHost``.

    ``faults`` names revisions whose starts fail by their own fault; ``traps`` those whose requests all trap.
    """

    def __init__(
        self, worker: str, network: MemoryNetwork, *, instances: int = 100, start_s: float = 0.001, work_s: float = 0.0
    ) -> None:
        self.worker = worker
        self.network = network
        self.capacity_ = EngineCapacity(
            engine="memory 1", kinds=tuple(Kind), instances=instances, front=f"http://{worker}.test"
        )
        self.faults: set[str] = set()
        self.traps: set[str] = set()
        self.bad_programs: dict[str, str] = {}
        self.start_s = start_s
        self.work_s = work_s
        self.table = RoutingTable()
        self.updates = 0
        self.rng = random.Random(7)
        self._reports: dict[str, InstanceReport] = {}
        self._waiting: Counter[RevisionKey] = Counter()
        self._in_flight: Counter[RevisionKey] = Counter()
        self._routed = Signal()
        self._on_change: Callable[[], None] = lambda: None
        self._on_log: Callable[[LogLine], None] = lambda line: None
        network.hosts[worker] = self

    def connect(self, *, on_change: Callable[[], None], on_log: Callable[[LogLine], None]) -> None:
        self._on_change, self._on_log = on_change, on_log

    def capacity(self) -> EngineCapacity:
        return self.capacity_

    async def prepare(self, order: PrepareOrder) -> Prepared:
        await asyncio.sleep(0)
        bad = self.bad_programs.get(order.spec.module, "")
        if bad:
            return Prepared(key=order.key, code="invalid-module", text=bad)
        return Prepared(key=order.key, compile_s=0.001)

    async def start(self, order: InstanceOrder) -> None:
        if order.id in self._reports:
            return
        self._reports[order.id] = InstanceReport(id=order.id, key=order.key, phase=InstancePhase.STARTING)
        asyncio.get_running_loop().call_later(self.start_s, self._started, order)

    def _started(self, order: InstanceOrder) -> None:
        report = self._reports.get(order.id)
        if report is None or report.phase is not InstancePhase.STARTING:
            return
        if order.key.revision in self.faults:
            self._set(order.id, phase=InstancePhase.FAILED, blame=True, text="it traps at its start")
        else:
            self._set(order.id, phase=InstancePhase.READY, address=f"unix:{order.id}@{self.worker}:1")

    async def stop(self, instance_id: str, *, drain_s: float) -> None:
        report = self._reports.get(instance_id)
        if report is None or report.phase in (InstancePhase.STOPPED, InstancePhase.FAILED, InstancePhase.DRAINING):
            return
        self._set(instance_id, phase=InstancePhase.DRAINING)
        self._end_if_idle(instance_id)

    def forget(self, instance_id: str) -> None:
        self._reports.pop(instance_id, None)

    def reports(self) -> Sequence[InstanceReport]:
        return list(self._reports.values())

    def update_routes(self, update: RoutingUpdate) -> bool:
        table = applied(self.table, update)
        if table is None:
            return False
        self.table = table
        self.updates += 1
        self._routed.notify()
        self._on_change()
        return True

    def routes_in_use(self) -> tuple[str, int]:
        return self.table.epoch, self.table.version

    def demands(self) -> Sequence[Demand]:
        keys = self._waiting.keys() | self._in_flight.keys()
        found = [Demand(key=key, waiting=self._waiting[key], in_flight=self._in_flight[key]) for key in sorted(keys)]
        return [each for each in found if each.waiting or each.in_flight]

    # What tests do.

    def crash(self, instance_id: str) -> None:
        """The instance ends by itself, with all its requests."""
        self._set(instance_id, phase=InstancePhase.FAILED, reason="engine-lost", text="killed")

    def log(self, line: LogLine) -> None:
        """The function writes something."""
        self._on_log(line)

    def live(self) -> list[str]:
        """Instances that answer."""
        return [each.id for each in self._reports.values() if each.phase is InstancePhase.READY]

    async def call(self, path: str, *, within_s: float = 10.0) -> tuple[int, str, str]:
        """One request at this front. Status 502 when instances died under it more often than it is tried."""
        tried: list[str] = []
        async with asyncio.timeout(within_s):
            for _ in range(_TRIES):
                routed = await self._route(path, tried)
                if isinstance(routed, NoRoute):
                    return routed.status, "", ""
                key, backend = routed.revision.key, routed.backend
                self._in_flight[key] += 1
                try:
                    status = await self.network.hosts[backend.worker].answer(backend.instance)
                finally:
                    self._in_flight[key] -= 1
                if status:
                    return status, key.revision, backend.instance
                tried.append(backend.instance)
                await self._routed.wait_notified(within_s=0.02)  # a front in one thread must let others run
        return 502, "", ""

    async def answer(self, instance_id: str) -> int:
        """What the instance answers; 0 when it is not there, or dies meanwhile."""
        report = self._reports.get(instance_id)
        if report is None or report.phase not in (InstancePhase.READY, InstancePhase.DRAINING):
            return 0
        self._count(instance_id, in_flight=1)
        await asyncio.sleep(self.work_s)
        report = self._reports.get(instance_id)
        if report is None or report.phase is InstancePhase.FAILED:
            return 0
        trapped = report.key.revision in self.traps
        self._count(instance_id, in_flight=-1, requests=1, traps=int(trapped))
        self._end_if_idle(instance_id)
        return 502 if trapped else 200

    async def _route(self, path: str, tried: Sequence[str]) -> Routed | NoRoute:
        while True:
            rolls = (self.rng.random(), self.rng.random(), self.rng.random())
            found = Router.pick(self.table, host="", path=path, rolls=rolls, in_flight=self._load_of, tried=tried)
            if isinstance(found, Routed | NoRoute):
                return found
            key = found.revision.key
            self._waiting[key] += 1
            if self._waiting[key] == 1:
                self._on_change()
            try:
                await self._routed.wait_notified(within_s=0.05)
            finally:
                self._waiting[key] -= 1

    def _load_of(self, instance_id: str) -> int:
        for host in self.network.hosts.values():
            if instance_id in host._reports:
                return host._reports[instance_id].stats.in_flight
        return 0

    def _count(self, instance_id: str, *, in_flight: int = 0, requests: int = 0, traps: int = 0) -> None:
        report = self._reports[instance_id]
        stats = report.stats
        counted = replace(
            stats,
            in_flight=stats.in_flight + in_flight,
            requests=stats.requests + requests,
            traps=stats.traps + traps,
        )
        self._reports[instance_id] = replace(report, stats=counted)

    def _end_if_idle(self, instance_id: str) -> None:
        report = self._reports[instance_id]
        if report.phase is InstancePhase.DRAINING and not report.stats.in_flight:
            self._set(instance_id, phase=InstancePhase.STOPPED)

    def _set(self, instance_id: str, **values: object) -> None:
        self._reports[instance_id] = replace(self._reports[instance_id], **values)
        self._on_change()
