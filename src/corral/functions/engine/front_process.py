"""The front as a child of its worker: started at the first function, fed with routes, started again when it dies."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

import corral
from corral.functions.frames import Counters
from corral.functions.front.limits import FrontConfig
from corral.functions.front.messages import LINE_MAX, FromFront, ToFront
from corral.functions.model import Demand
from corral.functions.routing import RoutingTable, RoutingUpdate, applied
from corral.functions.traces import Trace
from corral.kernel.concurrency import finish
from corral.sandboxes.runtimes.child import Child

_BACKLOG: Final = 1024
_PAUSES_S: Final = (0.05, 0.2, 1.0, 5.0)
_KILL_S: Final = 2.0
_LISTEN_AGAIN_S: Final = 2.0
_log = structlog.get_logger("corral.functions.front")


class FrontProcess:
    """See the module. ``on_news`` is called when it said something, with whether it uses newer routes. ``run`` keeps it
    alive until cancelled. ``over`` are instances that used too much, ``traces`` what requests went through; who
    cares for them takes them from the lists."""

    def __init__(self, config: FrontConfig, *, on_news: Callable[[bool], None]) -> None:
        self.address = self.public = self.trouble = ""
        self.pid: int | None = None
        self.demands: Sequence[Demand] = ()
        self.counters: Mapping[str, Counters] = {}
        self.over: list[str] = []
        self.traces: list[Trace] = []
        self._config, self._on_news = config, on_news
        self._table = RoutingTable()
        self._domains: dict[str, str] = {}
        self._used = ("", 0)
        self._wanted = asyncio.Event()
        self._listener: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None

    def listen(self) -> bool:
        """Take the port; so it is known, and callers wait, before the process is there. False when it is taken."""
        host, _, port = self._config.listen.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host.strip("[]"), int(port)))
            listener.listen(_BACKLOG)
        except (OSError, ValueError) as error:
            listener.close()
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            if not self.trouble:
                _log.error("engine.front.listen cannot be listened on", address=self._config.listen, why=why)
            self.trouble = f"engine.front.listen, {self._config.listen}, cannot be listened on: {why}"
            return False
        self._listener, self.trouble = listener, ""
        self.address = f"http://{host}:{listener.getsockname()[1]}"
        self.public = self._config.public_address(listener.getsockname()[1])
        asyncio.get_running_loop().add_reader(listener, self._somebody_came)
        return True

    def in_use(self) -> tuple[str, int]:
        """The table by which requests are routed; without a front the one that the next front begins with."""
        return (self._table.epoch, self._table.version) if self._writer is None else self._used

    def update(self, update: RoutingUpdate) -> bool:
        """Take routes and pass them on; False when one in between is missing."""
        table = applied(self._table, update)
        if table is None:
            return False
        self._table = table
        if update.whole or update.domains:
            self._domains = update.domains
        if table.functions:
            self._wanted.set()
        self._tell(ToFront(update=update))
        if self._writer is None:
            self._on_news(True)
        return True

    async def run(self) -> None:
        """Keep a front running from the first function, or the first caller, on. Cancellation: drains and ends it."""
        failures = 0
        while self._listener is None:
            await asyncio.sleep(_LISTEN_AGAIN_S)
            if self.listen():
                self._on_news(True)
        await self._wanted.wait()
        while True:
            started_s = asyncio.get_running_loop().time()
            status = await self._one()
            lived_s = asyncio.get_running_loop().time() - started_s
            failures = 0 if lived_s > 10 else failures + 1
            self.demands, self._used = (), ("", 0)
            self._on_news(True)
            _log.warning("the front ended; it is started again", status=status)
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])

    def close(self) -> None:
        """Free the port."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _somebody_came(self) -> None:
        """A caller before the first function: the front answers that there is none."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
        self._wanted.set()

    async def _one(self) -> int | None:
        assert self._listener is not None
        asyncio.get_running_loop().remove_reader(self._listener)
        ours, theirs = socket.socketpair()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        argv = [sys.executable, "-m", "corral.functions.front.process", msgspec.json.encode(self._config).decode()]
        env = {"PYTHONPATH": str(Path(corral.__file__).parent.parent), "PATH": os.environ.get("PATH", "")}
        try:
            child = Child.spawn(argv, descriptors=(null, 2, 2, theirs.fileno(), self._listener.fileno()), env=env)
        finally:
            os.close(null)
            theirs.close()
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_MAX)
            self.pid = child.pid
            self._tell_whole()
            while line := await reader.readline():
                self._hear(msgspec.json.decode(line, type=FromFront))
            await child.wait_ended(within_s=_KILL_S)
        finally:
            self.pid = None
            if self._writer is not None:
                self._writer.close()  # it ends when its worker does not speak any more
                self._writer = None
            await finish(self._ended(child), within_s=self._config.drain_s + 3 * _KILL_S)
        return child.status

    async def _ended(self, child: Child) -> None:
        if not await child.wait_ended(within_s=self._config.drain_s + _KILL_S):
            child.kill()
            await child.wait_ended(within_s=_KILL_S)

    def _hear(self, message: FromFront) -> None:
        if message.stale:
            self._tell_whole()
            return
        grew = (message.epoch, message.version) != self._used
        self._used = (message.epoch, message.version)
        self.demands, self.counters = message.demands, message.counters
        self.over += message.over
        self.traces += message.traces
        self._on_news(grew)

    def _tell_whole(self) -> None:
        self._tell(
            ToFront(
                update=RoutingUpdate(
                    epoch=self._table.epoch,
                    base=0,
                    version=self._table.version,
                    whole=True,
                    changed=tuple(self._table.functions.values()),
                    domains=self._domains,
                )
            )
        )

    def _tell(self, message: ToFront) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")
