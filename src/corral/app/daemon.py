"""``corral.app.launch daemon``: the compile daemon of one user. Wrappers start it on demand; it ends when idle.

It reads only the ``compile`` section, and imports only what a compile needs: its start is part of somebody's build.
"""

import argparse
import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvloop

from corral.compile.elsewhere import Elsewhere
from corral.compile.journal import Journal
from corral.compile.ports import SharedResults
from corral.compile.records import Records
from corral.compile.rendezvous import SOCKET, TOKEN, bind, directory, is_served, new_token, open_private, world
from corral.compile.server import Server
from corral.compile.service import CompileService
from corral.compile.settings import config_file, load_compile_config, store_directory
from corral.compile.store import ResultStore
from corral.compile.telling import Teller
from corral.kernel.clock import SystemClock
from corral.kernel.errors import CorralError

if TYPE_CHECKING:
    from corral.compile.remote.compiler import FleetCompiler

_TICK_S: Final = 1.0
_CLEAN_EVERY_S: Final = 3600.0
_TURN_S: Final = 0.02
_LOG_BYTES_MAX: Final = 4 * 1024**2
_RELOAD_NEEDS_RESTART: Final = ("store", "jobs", "shared", "remote")
_log: Final = structlog.get_logger("compile")


class Daemon:
    """One life of the daemon, from its lock to its end."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._file = config_file(environment)
        self._file_seen = _stamp(self._file)
        self.config = load_compile_config(environment)
        self._clock = SystemClock()
        self._store = ResultStore(store_directory(self.config, environment), self.config)
        self._teller = Teller(
            Journal(self._store.directory, bytes_max=self.config.journal_bytes),
            Records(self._store.directory, records_max=self.config.records),
            self._clock,
        )
        self._service = CompileService(
            self.config,
            store=self._store,
            teller=self._teller,
            clock=self._clock,
            world=world(),
            elsewhere=self._open_elsewhere(),
        )
        self._started_s = self._clock.monotonic_s()
        self._beside: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()

    async def run(self, private: int, ready: int) -> None:
        """Serve until idle, told to stop, or signalled."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        listening = bind(private)
        server = Server(
            self._service,
            self._control,
            token=new_token(private),
            uid=os.geteuid(),
            connections_max=self.config.connections,
        )
        for mark in ("start.failed", "silent"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(mark, dir_fd=private)
        _tell_ready(ready)
        async with self._service.running(), asyncio.TaskGroup() as group:
            self._beside = group
            upkeep = group.create_task(self._upkeep(private), name="upkeep")
            await server.serve(listening, self._stopping)
            for name in (SOCKET, TOKEN):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=private)
            upkeep.cancel()
            if self._fleet is not None:
                await self._fleet.close()

    def _open_elsewhere(self) -> Elsewhere | None:
        """A shared store and the fleet, those that are configured. Raises InvalidSpec."""
        self._fleet: FleetCompiler | None = None
        shared: SharedResults | None = None
        if self.config.shared.url:
            from corral.compile.shared import ObjectStoreResults  # noqa: PLC0415 - heavy, and most have none

            shared = ObjectStoreResults(self.config.shared, self._clock)
        if self.config.remote.scheduler:
            from corral.app.compile_routes import fleet_compiler  # noqa: PLC0415 - heavy, and most daemons work alone

            self._fleet = fleet_compiler(self.config.remote, self._environment, self._clock, self._start_beside)
        return Elsewhere(shared=shared, remote=self._fleet) if shared or self._fleet else None

    def _start_beside(self, work: Coroutine[Any, Any, None]) -> None:
        if self._beside is None:
            work.close()  # not yet, or not any more
            return
        self._beside.create_task(work)

    async def _upkeep(self, private: int) -> None:
        ours = _entrance(private)
        await asyncio.to_thread(self._store.sweep)
        cleaned_s = -_CLEAN_EVERY_S
        while True:
            if self._clock.monotonic_s() >= cleaned_s + _CLEAN_EVERY_S:
                cleaned_s = self._clock.monotonic_s()
                await asyncio.to_thread(self._store.clean_old, now_s=self._clock.now_s())
            await asyncio.sleep(_TICK_S)
            self._teller.write_events()
            if self._fleet is not None:
                self._fleet.slots.tick()
            if _stamp(self._file) != self._file_seen:
                self._reload()
            if _entrance(private) != ours:  # removed or overwritten: nobody can reach us any more
                self._stopping.set()
            idle_s = self._clock.monotonic_s() - self._service.used_s
            if idle_s > self.config.idle_s and not self._service.busy:
                _log.info("idle", idle_s=round(idle_s))
                self._stopping.set()

    def _reload(self) -> None:
        """Take what the file says now; a file with a mistake changes nothing."""
        self._file_seen = _stamp(self._file)
        try:
            fresh = load_compile_config(self._environment)
        except CorralError as error:
            _log.warning("the configuration stays as it was", error=error.message)
            return
        if any(getattr(fresh, name) != getattr(self.config, name) for name in _RELOAD_NEEDS_RESTART):
            self._stopping.set()  # the next wrapper starts another one
            return
        self.config = fresh
        self._store.configure(fresh)
        self._service.configure(fresh)
        _log.info("configured anew")

    async def _control(self, asked: dict[str, object]) -> dict[str, object]:
        """What `corral cc` asks of a running daemon."""
        match asked.get("do"):
            case "flush":
                await self._service.flush()
            case "rescan":
                self._service.forget()
                await asyncio.to_thread(self._store.scan)
            case "reload":
                self._reload()
            case "stop":
                await self._service.flush()
                self._stopping.set()
            case other:
                return {"error": f"this daemon does not know {other!r}"}
        return {
            "pid": os.getpid(),
            "up_s": self._clock.monotonic_s() - self._started_s,
            "store": str(self._store.directory),
            **self._service.figures(),
        }


def _stamp(file: Path | None) -> tuple[int, int]:
    try:
        found = file.stat() if file is not None else None
    except OSError:
        found = None
    return (0, 0) if found is None else (found.st_mtime_ns, found.st_ino)


def _entrance(private: int) -> tuple[tuple[int, int], ...]:
    """Which socket and which token wrappers find."""
    found = []
    for name in (SOCKET, TOKEN):
        with contextlib.suppress(OSError):
            seen = os.stat(name, dir_fd=private)
            found.append((seen.st_ino, seen.st_mtime_ns))
    return tuple(found)


def _tell_ready(ready: int) -> None:
    if ready >= 0:
        os.write(ready, b"R")
        os.close(ready)


def _our_turn(private: int) -> bool:
    """Take the lock, which this process holds for its life; False when another daemon serves.

    One that is about to end frees it with its last breath, and its wrappers wait with us; one that is about to serve
    was started by a wrapper that somebody has killed.
    """
    lock = os.open("daemon.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=private)
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if is_served(private):
            os.close(lock)
            return False
        time.sleep(_TURN_S)


def _configure_logging() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    with contextlib.suppress(OSError):
        if os.fstat(2).st_size > _LOG_BYTES_MAX:
            os.ftruncate(2, 0)


async def _serve(private: int, ready: int) -> None:
    await Daemon(os.environ).run(private, ready)


def main() -> int:
    """0 when it ended as it should, 1 with a sentence on stderr (daemon.log) otherwise."""
    parser = argparse.ArgumentParser(prog="corral cc daemon")
    parser.add_argument("--ready-fd", type=int, default=-1)
    ready: int = parser.parse_args().ready_fd
    os.umask(0o077)
    _configure_logging()
    try:
        private = open_private(directory(os.environ, os.geteuid()))
        if not _our_turn(private):
            _tell_ready(ready)  # whoever started us is served by the other one
            return 0
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(private, ready))
    except (CorralError, OSError) as error:
        sys.stderr.write(f"corral: error: {error}\n")
        return 1
    return 0
