"""One instance on this worker: what was ordered, where it stands, what it did."""

from pathlib import Path
from typing import Final

from corral.functions.engine.component_process import ComponentProcess
from corral.functions.engine.host_process import HostProcess
from corral.functions.frames import Counters
from corral.functions.model import InstanceOrder, InstancePhase, InstanceReport, InstanceStats

_NONE: Final = Counters(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class Instance:
    """See the module. The phase goes one way: starting, ready, draining, and stopped or failed."""

    def __init__(self, order: InstanceOrder) -> None:
        self.order = order
        self.phase = InstancePhase.STARTING
        self.process: HostProcess | ComponentProcess | None = None
        self.trees: list[Path] = []
        self.started_s = self.start_s = 0.0
        self.cold = False
        self._reason = self._text = ""
        self._blame = False
        self._last = _NONE

    @property
    def over(self) -> bool:
        return self.phase in (InstancePhase.STOPPED, InstancePhase.FAILED)

    @property
    def counters(self) -> Counters:
        """The last ones that its process told, or that the front told of it."""
        if isinstance(self.process, HostProcess):
            self._last = self.process.counters.get(self.order.id, self._last)
        elif self.process is not None:
            self._last = self.process.counters or self._last
        return self._last

    def ready(self, process: HostProcess | ComponentProcess, *, started_s: float, start_s: float, cold: bool) -> None:
        """It takes requests from now on, unless it was told to stop meanwhile."""
        self.process, self.started_s, self.start_s, self.cold = process, started_s, start_s, cold
        if self.phase is InstancePhase.STARTING:
            self.phase = InstancePhase.READY

    def fail(self, reason: str, text: str, *, blame: bool) -> None:
        """It is no more; ``blame`` when that is its program's fault."""
        if not self.over:
            self.phase, self._reason, self._text, self._blame = InstancePhase.FAILED, reason, text, blame

    def report(self, *, resident_bytes: int, peak_bytes: int = 0, peer: str = "") -> InstanceReport:
        """What the scheduler hears. ``resident_bytes`` is its part of what its process has, ``peak_bytes`` the most
        that it had, ``peer`` where other workers' fronts reach the one of this worker."""
        now = self.counters
        address = self.process.address if self.process is not None and not self.over else ""
        if address and peer:
            address = f"{address}@{peer}"
        return InstanceReport(
            id=self.order.id,
            key=self.order.key,
            phase=self.phase,
            address=address,
            reason=self._reason,
            text=self._text,
            blame=self._blame,
            pid=self.process.pid if self.process is not None else 0,
            started_s=self.started_s,
            start_s=self.start_s,
            cold=self.cold,
            stats=InstanceStats(
                requests=now.requests,
                errors=now.errors,
                traps=now.traps,
                timeouts=now.timeouts,
                refused=now.refused,
                in_flight=now.in_flight,
                cpu_s=now.cpu_ns / 1e9,
                memory_bytes=0 if self.over else resident_bytes,
                memory_peak_bytes=max(now.memory_peak, peak_bytes),
                latency_s=now.wall_ns / 1e9,
                latency_p50_s=now.latency_p50_ns / 1e9,
                latency_p99_s=now.latency_p99_ns / 1e9,
                instantiate_s=now.instantiate_ns / 1e9,
            ),
        )
