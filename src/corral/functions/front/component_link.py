"""A component's server, which lives in a network of its own: connections to it are handed over at a unix socket.

Its process makes an instance for every request and knows no limit of processor time, so the front keeps it: while
requests run, the process's clock is read every few milliseconds. A request has used too much when the process, since
the request began, used more than ``cpu_s`` for each request that ran beside it, and for itself. Then the process ends,
and with it all that it runs; requests that had no time to use that much are told that their instance was lost.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from corral.functions.frames import Counters, Ended, Outcome
from corral.functions.front.cgi import Asking, Header, forwarding_headers
from corral.functions.front.http_link import Connected, HttpLink, HttpStream
from corral.functions.front.lanes import Lanes
from corral.functions.front.upstream import Sink
from corral.functions.model import Limits, RevisionKey

_LOOK_S: Final = 0.004
_LATENCIES: Final = 2048
_TIMEOUTS: Final = frozenset({Outcome.WALL, Outcome.CPU})


class Tally:
    """What one component's requests came to, as a native host counts them."""

    def __init__(self) -> None:
        self.requests = self.errors = self.traps = self.timeouts = self.in_flight = self.wall_ns = 0
        self._latencies: deque[int] = deque(maxlen=_LATENCIES)

    def count(self, end: Ended | None, wall_ns: int) -> None:
        """One request is over; None: its instance was lost under it."""
        outcome = end.outcome if end is not None else Outcome.TRAP
        self.requests += 1
        self.wall_ns += wall_ns
        self.timeouts += outcome in _TIMEOUTS
        self.traps += outcome is Outcome.TRAP
        self.errors += outcome not in (Outcome.OK, Outcome.CANCELED)
        self._latencies.append(wall_ns)

    def counters(self, cpu_ns: int) -> Counters:
        """As of now."""
        ordered = sorted(self._latencies) or [0]
        return Counters(
            requests=self.requests,
            errors=self.errors,
            traps=self.traps,
            timeouts=self.timeouts,
            refused=0,
            in_flight=self.in_flight,
            cpu_ns=cpu_ns,
            wall_ns=self.wall_ns,
            instantiate_ns=0,
            memory_peak=0,
            latency_p50_ns=ordered[len(ordered) // 2],
            latency_p99_ns=ordered[len(ordered) * 99 // 100],
        )


class _Run:
    """A request on its way: since when, what the process had used by then, and how many ran beside it."""

    __slots__ = ("began_ns", "beside", "cpu_limit_ns", "cpu_ns")

    def __init__(self, cpu_limit_ns: int, cpu_ns: int, beside: int) -> None:
        self.began_ns, self.cpu_ns, self.cpu_limit_ns, self.beside = (
            time.perf_counter_ns(),
            cpu_ns,
            cpu_limit_ns,
            beside,
        )


class ComponentLink(HttpLink):
    """``address`` is ``PID:PATH``, of the server's process and the socket. ``on_over`` hears that it used too much."""

    def __init__(self, address: str, lanes: Lanes, *, on_over: Callable[[str], None]) -> None:
        super().__init__(lanes)
        pid, _, self._path = address.partition(":")
        self._loop = asyncio.get_running_loop()
        self._clock = process_clock(int(pid))
        self._on_over = on_over
        self._runs: dict[HttpStream, _Run] = {}
        self._cpu_ns = self._first_ns = self._used_ns()
        self._timer: asyncio.TimerHandle | None = None
        self.instance = ""
        self.tally = Tally()

    def open(
        self, sink: Sink, *, instance: str, key: RevisionKey, limits: Limits, ask: Asking, has_body: bool
    ) -> HttpStream:
        self.instance = instance
        for run in self._runs.values():
            run.beside += 1
        stream = super().open(sink, instance=instance, key=key, limits=limits, ask=ask, has_body=has_body)
        self._runs[stream] = _Run(int(limits.cpu_s * 1e9), self._used_ns(), len(self._runs) + 1)
        self.tally.in_flight = len(self._runs)
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)
        return stream

    def connect(self, then: Connected) -> None:
        asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            asking.connect(self._path)
        except OSError:
            asking.close()
            then(None)
            return
        self._loop.add_reader(asking, self._handed, asking, then)

    def head(self, ask: Asking, key: RevisionKey) -> tuple[bytes, list[Header]]:
        target = ask.path + (b"?" + ask.query if ask.query else b"")
        return b"%b %b HTTP/1.1\r\n" % (ask.method, target), forwarding_headers(ask)

    def answered_itself(self, status: int, body: bytes) -> bool:
        """Its page for a program that trapped, or that set no answer."""
        return status == 500 and body.startswith(b"<!doctype html>") and b"\n        wasmtime\n" in body

    def over(self, stream: HttpStream, end: Ended | None) -> Ended | None:
        run = self._runs.pop(stream, None)
        if run is None:
            return end
        wall_ns = time.perf_counter_ns() - run.began_ns
        self.tally.in_flight = len(self._runs)
        self.tally.count(end, wall_ns)
        if end is None:
            return None
        # what ran beside it has its part of the time
        return Ended(end.outcome, 0, (self._used_ns() - run.cpu_ns) // run.beside, wall_ns, 0)

    def counters(self) -> Counters:
        """For the worker."""
        return self.tally.counters(self._cpu_ns - self._first_ns)

    def _handed(self, asking: socket.socket, then: Connected) -> None:
        self._loop.remove_reader(asking)
        try:
            _, descriptors, _, _ = socket.recv_fds(asking, 1, 1)
        except OSError:
            descriptors = []
        asking.close()
        connection = socket.socket(fileno=descriptors[0]) if descriptors else None
        if connection is not None:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        then(connection)

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_S, self._look) if self._runs else None
        used_ns = self._used_ns()
        if any(used_ns - run.cpu_ns > run.cpu_limit_ns * run.beside for run in self._runs.values()):
            self._on_over(self.instance)
            self._end_all(used_ns)

    def _end_all(self, used_ns: int) -> None:
        now_ns = time.perf_counter_ns()
        for stream, run in list(self._runs.items()):
            suspect = min(now_ns - run.began_ns, used_ns - run.cpu_ns) >= run.cpu_limit_ns
            stream.end(Ended(Outcome.CPU, 0, 0, 0, 0) if suspect else None)

    def _used_ns(self) -> int:
        """Processor time of the process; as it was last when it is gone."""
        try:
            self._cpu_ns = time.clock_gettime_ns(self._clock)
        except OSError:
            pass
        return self._cpu_ns


def process_clock(pid: int) -> int:
    """The clock of a process's processor time (clock_getcpuclockid(3), as Linux numbers it)."""
    return (~pid << 3) | 2
