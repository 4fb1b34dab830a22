"""The front: routes, places, queues. One event loop, no await on the way of a request.

It holds the routing table that the scheduler pushes. A request resolves to a revision, enters the less loaded of two
random instances that has a free place, or waits in the revision's bounded queue; a free place, a new instance or a new
table lets the first one in.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from corral.functions.frames import Counters
from corral.functions.front.admission import Admission
from corral.functions.front.component_link import ComponentLink
from corral.functions.front.exchange import Exchange
from corral.functions.front.host_link import HostLink
from corral.functions.front.http import Connection
from corral.functions.front.lanes import NOBODY, Lanes
from corral.functions.front.limits import FrontConfig
from corral.functions.front.peer_link import PeerLink
from corral.functions.front.tracing import Tracing
from corral.functions.front.upstream import Upstream
from corral.functions.model import Demand, RevisionKey
from corral.functions.routing import (
    Asked,
    Backend,
    FunctionRoute,
    NoRoute,
    RevisionRoute,
    Router,
    RoutingTable,
    RoutingUpdate,
    applied,
    choose_backend,
    choose_revision,
)
from corral.functions.traces import Trace

_LOOK_S: Final = 0.5
_LOOKED_AT_PER_TURN: Final = 256
_RESOLVED_MAX: Final = 4096
_TRACES_MAX: Final = 1000


class Front:
    """See the module. ``urgent`` is called when the demands should be told at once."""

    def __init__(self, config: FrontConfig, *, rng: random.Random, urgent: Callable[[], None]) -> None:
        self.replay_bytes = config.replay_bytes
        self.port = 0
        self.config, self.lanes = config, Lanes(config.turn_us / 1e6)
        self._rng, self._urgent = rng, urgent
        self._loop = asyncio.get_running_loop()
        self._table = RoutingTable()
        self._domains: Mapping[str, str] = {}
        self._resolved: dict[tuple[bytes, bytes], Asked | NoRoute] = {}
        self._admissions: dict[RevisionKey, Admission[Exchange]] = {}
        self._upstreams: dict[str, Upstream] = {}
        self._connections: set[Connection] = set()
        self._draining = False
        self._inside: dict[Exchange, tuple[RevisionKey, str]] = {}
        self._over: list[str] = []
        self._traces: list[Trace] = []
        self._timers: dict[Exchange, tuple[asyncio.TimerHandle, float]] = {}

    # -- the worker's side --

    def update(self, update: RoutingUpdate) -> bool:
        """Take new routes; False when one in between is missing."""
        table = applied(self._table, update)
        if table is None:
            return False
        self._table = table
        self._resolved.clear()
        if update.whole or update.domains:
            self._domains = update.domains
        self._forget_upstreams()
        for key in [key for key, admission in self._admissions.items() if admission.waiting]:
            self._reroute(self._admissions[key])
        return True

    @property
    def table(self) -> RoutingTable:
        """The routes in use."""
        return self._table

    def demands(self) -> tuple[Demand, ...]:
        """What waits and what runs, by revision; forgets revisions that have neither."""
        found = []
        for key, admission in list(self._admissions.items()):
            if admission.waiting or admission.in_flight:
                found.append(Demand(key=key, waiting=len(admission.waiting), in_flight=admission.total))
            elif admission.limits.requests_per_s == 0:
                del self._admissions[key]
        return tuple(found)

    def counters(self) -> dict[str, Counters]:
        """What the requests of components came to, by instance; hosts of modules tell that themselves."""
        links = (link for link in self._upstreams.values() if isinstance(link, ComponentLink))
        return {link.instance: link.counters() for link in links if link.instance}

    @property
    def has_traces(self) -> bool:
        return bool(self._traces)

    def take_traces(self) -> tuple[Trace, ...]:
        """Of requests that ended since the last call."""
        traces, self._traces = tuple(self._traces), []
        return traces

    def _keep_trace(self, trace: Trace) -> None:
        if len(self._traces) < _TRACES_MAX:
            self._traces.append(trace)

    def take_over(self) -> tuple[str, ...]:
        """Instances whose process used more than it may, since the last call; it is for the worker to end them."""
        over, self._over = tuple(self._over), []
        return over

    async def run(self) -> None:
        """Look after connections that are idle or slow, for ever; a part of them in each turn of the loop."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for number, connection in enumerate(list(self._connections), 1):
                connection.look(self._loop.time(), draining=self._draining)
                if number % _LOOKED_AT_PER_TURN == 0:
                    await asyncio.sleep(0)

    def drain(self) -> None:
        """Close connections as they become idle; the listening socket is closed already."""
        self._draining = True
        for connection in list(self._connections):
            connection.look(self._loop.time(), draining=True)

    @property
    def idle(self) -> bool:
        return not self._connections

    def connected(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        """A client's connection was accepted."""
        Connection(connection, peer, self)

    # -- connections (Overseer) --

    def opened(self, connection: Connection) -> bool:
        if len(self._connections) >= self.config.connections or self._draining:
            return False
        self._connections.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    # -- exchanges (Desk) --

    def admit(self, exchange: Exchange) -> None:
        """Route it: run, wait or refuse."""
        ask = exchange.ask
        asked = self._resolve(ask.said.host if self._domains else b"", ask.path)
        if isinstance(asked, NoRoute):
            exchange.refuse(asked.status, asked.code, asked.text)
            return
        if exchange.roll is None:
            exchange.roll = self._rng.random()
        revision = choose_revision(asked, exchange.roll)
        if isinstance(revision, NoRoute):
            exchange.refuse(revision.status, revision.code, revision.text)
            return
        path = asked.path.encode("latin-1")
        ask.script, ask.path = ask.path.removesuffix(path), path
        self._enter(exchange, asked.function, revision)

    def left(self, exchange: Exchange, *, again: bool) -> None:
        """It holds no place any more; ``again``: it wants another one."""
        inside = self._inside.pop(exchange, None)
        if inside is not None:
            key, instance = inside
            admission = self._admissions.get(key)
            if admission is not None:
                admission.leave(instance)
                if admission.waiting:
                    self._let_in(admission)
        self._stop_waiting(exchange)
        if again:
            self._retry(exchange)

    def _resolve(self, host: bytes, path: bytes) -> Asked | NoRoute:
        found = self._resolved.get((host, path))
        if found is None:
            found = Router.resolve(
                self._table, host=host.decode("latin-1"), path=path.decode("latin-1"), domains=self._domains
            )
            if len(self._resolved) >= _RESOLVED_MAX:
                self._resolved.clear()
            self._resolved[host, path] = found
        return found

    def _enter(self, exchange: Exchange, function: FunctionRoute, revision: RevisionRoute) -> None:
        exchange.route = (function, revision)
        exchange.lane = self.lanes.of(revision.key.function.tenant)
        admission = self._admission(revision)
        if exchange.ask.said.traced and exchange.tracing is None and admission.may_trace(self._loop.time()):
            exchange.tracing = Tracing(exchange.ask, revision.key, self._keep_trace)
        if not admission.within_rate(self._loop.time()):
            exchange.refuse(
                429, "too-many-requests", "this function takes no more requests per second", retry_after_s=1
            )
            return
        backend = None if admission.waiting else self._free(admission, revision, exchange)
        if backend is not None:
            self._run(exchange, admission, revision, backend)
            return
        if not admission.wait(exchange):
            exchange.refuse(429, "queue-full", "this function has as many requests as it takes", retry_after_s=1)
            return
        now_s = self._loop.time()
        exchange.cold = not revision.backends
        timer = self._loop.call_later(revision.limits.queue_s, self._waited_too_long, exchange)
        self._timers[exchange] = (timer, now_s)
        if len(admission.waiting) == 1 or not revision.backends:
            self._urgent()

    def _retry(self, exchange: Exchange) -> None:
        """Another instance of the same revision, or the end of its hopes."""
        assert exchange.route is not None
        key = exchange.route[1].key
        found = self._now(key)
        if found is None:
            exchange.refuse(503, "instance-lost", "the function's instance went away, and it has no other")
            return
        revision = found[1]
        exchange.route = found
        admission = self._admission(revision)
        backend = self._free(admission, revision, exchange)
        if backend is not None:
            self._run(exchange, admission, revision, backend)
        elif len(exchange.tried) > 1 or not admission.wait(exchange):
            exchange.refuse(503, "instance-lost", "the function's instance went away, and the others are full")
        else:
            timer = self._loop.call_later(revision.limits.queue_s, self._waited_too_long, exchange)
            self._timers[exchange] = (timer, self._loop.time())
            exchange.tried.clear()
            self._urgent()

    def _run(
        self, exchange: Exchange, admission: Admission[Exchange], revision: RevisionRoute, backend: Backend
    ) -> None:
        self._stop_waiting(exchange)
        admission.enter(backend.instance)
        self._inside[exchange] = (revision.key, backend.instance)
        exchange.run(self._upstream(backend.address, revision.key.function.tenant), backend.instance)

    def _free(self, admission: Admission[Exchange], revision: RevisionRoute, exchange: Exchange) -> Backend | None:
        if exchange.ask.said.hop:
            here = tuple(each for each in revision.backends if self._is_here(each.address))
            revision = msgspec.structs.replace(revision, backends=here)
        live = revision.backends
        if len(live) == 1:
            only = live[0]
            return only if admission.has_room(only.instance) and only.instance not in exchange.tried else None
        rolls = (self._rng.random(), self._rng.random())
        picked = choose_backend(revision, rolls, in_flight=admission.load, tried=exchange.tried)
        if picked is None or admission.has_room(picked.instance):
            return picked
        return next((each for each in live if admission.has_room(each.instance)), None)

    def _let_in(self, admission: Admission[Exchange]) -> None:
        while admission.waiting:
            exchange = admission.waiting[0]
            assert exchange.route is not None
            found = self._now(exchange.route[1].key)
            backend = self._free(admission, found[1], exchange) if found is not None else None
            if backend is None or found is None:
                return
            admission.waiting.popleft()
            exchange.route = found
            self._run(exchange, admission, found[1], backend)

    def _reroute(self, admission: Admission[Exchange]) -> None:
        """The table changed: those that wait for a revision that is gone are routed anew."""
        first = admission.waiting[0]
        assert first.route is not None
        if self._now(first.route[1].key) is not None:
            self._let_in(admission)
            return
        waiting = list(admission.waiting)
        admission.waiting.clear()
        for exchange in waiting:
            self._stop_waiting(exchange)
            exchange.ask.path = exchange.ask.target.partition(b"?")[0]
            self.admit(exchange)

    def _waited_too_long(self, exchange: Exchange) -> None:
        assert exchange.route is not None
        revision = exchange.route[1]
        found = self._now(revision.key)
        if found is None or not found[1].backends:
            exchange.refuse(503, "no-instance", "no instance of this function could be started in time")
        else:
            exchange.refuse(429, "queue-timeout", "this function was full for too long", retry_after_s=1)

    def _stop_waiting(self, exchange: Exchange) -> None:
        timer = self._timers.pop(exchange, None)
        if timer is None:
            return
        timer[0].cancel()
        exchange.waited_s += self._loop.time() - timer[1]
        if exchange.route is not None:
            admission = self._admissions.get(exchange.route[1].key)
            if admission is not None and exchange in admission.waiting:
                admission.waiting.remove(exchange)

    def _now(self, key: RevisionKey) -> tuple[FunctionRoute, RevisionRoute] | None:
        """The routes of a revision as they are now; None when it may not be called any more."""
        function = self._table.functions.get(key.function)
        if function is None:
            return None
        return next(((function, each) for each in function.revisions if each.key == key), None)

    def _admission(self, revision: RevisionRoute) -> Admission[Exchange]:
        found = self._admissions.get(revision.key)
        if found is None:
            found = self._admissions[revision.key] = Admission(revision.limits, self._loop.time())
        return found

    def _upstream(self, address: str, tenant: str) -> Upstream:
        found = self._upstreams.get(address)
        if found is None:
            found = self._upstreams[address] = self._link(address, tenant)
        return found

    def _link(self, address: str, tenant: str) -> Upstream:
        local, _, peer = address.partition("@")
        if not self._is_here(address):
            return PeerLink(peer, self.lanes)
        kind, _, where = local.partition(":")
        if kind == "unix":  # a process of this tenant
            return HostLink(where, self.lanes.of(tenant))
        return ComponentLink(where, self.lanes, on_over=self._used_too_much)

    def _used_too_much(self, instance: str) -> None:
        self._over.append(instance)
        self._urgent()

    def _is_here(self, address: str) -> bool:
        """Whether an instance, at ``LOCAL`` or ``LOCAL@FRONT``, is one of this front's worker."""
        peer = address.partition("@")[2]
        return not peer or peer == self.config.public_address(self.port)

    def _forget_upstreams(self) -> None:
        live = {
            backend.address
            for function in self._table.functions.values()
            for revision in function.revisions
            for backend in revision.backends
        }
        for address in [address for address in self._upstreams if address not in live]:
            self._upstreams.pop(address).close()
        self.lanes.keep({key.tenant for key in self._table.functions} | {NOBODY})
