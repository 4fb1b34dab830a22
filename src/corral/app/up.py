"""``corral up``: one scheduler and one worker as child processes, started again when they die, stopped in order.

Nothing survives this process: each child asks the kernel to be killed with it. The worker stops first, so that its
runs can still report; then the scheduler.
"""

import asyncio
import os
import ssl
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from corral.app.children import Child
from corral.app.config_sections import Config
from corral.app.datadir import locked_directory
from corral.app.start import configure_logging, passed_on, read_arguments, run_process, tell
from corral.kernel.concurrency import finish
from corral.kernel.errors import CorralError, InvalidSpec, SchedulerUnavailable
from corral.kernel.ids import new_token
from corral.wire.address import join_address, split_address
from corral.wire.certificates import fingerprint_of, trusting_only

_POLL_S = 0.05
_KILL_S = 5.0


class Supervisor:
    """Both children of one machine.

    ``passed_on`` are arguments that every child gets; what it must know besides goes through its environment, where
    other users of the machine cannot read the worker's token.
    """

    def __init__(self, config: Config, passed_on: Sequence[str], ready_file: str) -> None:
        self._config = config
        self._passed_on = tuple(passed_on)
        self._ready_file = ready_file
        self._token = new_token()
        self._http = config.scheduler.http
        self._scheme = "http"
        self._grpc = config.scheduler.grpc
        self._reapi = ""
        self._listening = asyncio.Event()
        self._scheduler = Child("scheduler", config.supervisor, self._scheduler_arguments, self._scheduler_environment)
        self._worker = Child("worker", config.supervisor, self._worker_arguments, self._worker_environment)

    async def run(self, stopping: asyncio.Event) -> int:
        """Until told to stop. Raises what :meth:`Child.keep_running` raises; SchedulerUnavailable at a slow start."""
        self._forget_ready()  # one that was killed has left it, and somebody may wait for ours
        try:
            async with asyncio.TaskGroup() as group:
                keeping = [
                    group.create_task(self._scheduler.keep_running(self._heard), name="scheduler"),
                    group.create_task(self._start_worker(), name="worker"),
                    group.create_task(self._announce_ready(), name="ready"),
                ]
                await stopping.wait()
                for task in keeping:
                    task.cancel()
        finally:
            await finish(self._stop(), within_s=self._config.supervisor.stop_s + 4 * _KILL_S)
        return 0

    async def _start_worker(self) -> None:
        await self._listening.wait()
        await self._worker.keep_running()

    async def _announce_ready(self) -> None:
        try:
            async with asyncio.timeout(self._config.supervisor.ready_s):
                await self._listening.wait()
                while not await _answers_ready(self._http, self._tls()):  # noqa: ASYNC110 (another process; nothing to wait on)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise SchedulerUnavailable(
                f"nothing was ready within {self._config.supervisor.ready_s:g} s",
                cure="the words of scheduler and worker are above",
            ) from None
        bazel = f" reapi={self._reapi}" if self._reapi else ""
        line = f"ready http={self._scheme}://{self._http} grpc={self._grpc}{bazel}\n"
        if self._ready_file:
            write_atomically(Path(self._ready_file), line)
        sys.stdout.write(line)
        sys.stdout.flush()

    async def _stop(self) -> None:
        self._forget_ready()
        await self._worker.stop(self._config.supervisor.stop_s)
        await self._scheduler.stop(self._config.scheduler.http_limits.stop_s + _KILL_S)

    def _forget_ready(self) -> None:
        if self._ready_file:
            Path(self._ready_file).unlink(missing_ok=True)

    def _heard(self, line: str) -> None:
        """The scheduler says where it listens; after a restart it takes the same ports again."""
        words = dict(word.partition("=")[::2] for word in line.split())
        if line.startswith("ready ") and "http" in words and "grpc" in words:
            self._scheme, _, self._http = words["http"].partition("://")
            self._grpc = words["grpc"]
            self._reapi = words.get("reapi", "")
            self._listening.set()

    def _tls(self) -> ssl.SSLContext | None:
        return trusting_only(Path(self._config.http_tls.certificate)) if self._scheme == "https" else None

    def _scheduler_arguments(self) -> Sequence[str]:
        reapi = ("--set", f"reapi.address={self._reapi}") if self._config.reapi.address and self._reapi else ()
        addresses = ("--set", f"scheduler.http={self._http}", "--set", f"scheduler.grpc={self._grpc}")
        return (*self._passed_on, *addresses, *reapi)

    def _scheduler_environment(self) -> Mapping[str, str]:
        tokens = (*self._config.access.worker_tokens, self._token)
        return {"CORRAL_ACCESS__WORKER_TOKENS": ",".join(tokens)}

    def _worker_arguments(self) -> Sequence[str]:
        arguments = (*self._passed_on, "--set", f"join.scheduler={reachable(self._grpc)}")
        link, shown = self._config.join.link.tls, self._config.tls.certificate
        if shown and not (link.ca or link.fingerprint):
            arguments = (*arguments, "--set", f"join.link.tls.fingerprint={fingerprint_of(Path(shown))}")
        return arguments

    def _worker_environment(self) -> Mapping[str, str]:
        return {"CORRAL_JOIN__TOKEN": self._token}


def reachable(address: str) -> str:
    """Where this machine reaches somebody who listens at ``address``, which may be a wildcard."""
    host, port = split_address(address)
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return join_address(loopback, port)


def write_atomically(path: Path, text: str) -> None:
    """Whoever sees the file sees all of it. Raises InvalidSpec."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise InvalidSpec(f"--ready-file {path}: {error.strerror}", field="ready-file") from error


async def _answers_ready(address: str, tls: ssl.SSLContext | None) -> bool:
    """Ask ``/ready`` by hand: an HTTP library would cost this process more memory than all the rest."""
    host, port = split_address(reachable(address))
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
            try:
                writer.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def supervise(config: Config, passed_on: Sequence[str], ready_file: str, stopping: asyncio.Event) -> int:
    """Hold the data directory and run both children."""
    configure_logging("up")
    with locked_directory(config.data, "up"):
        return await Supervisor(config, passed_on, ready_file).run(stopping)


def main() -> int:
    """``corral.app.launch up``."""
    try:
        config, arguments = read_arguments("up", "--ready-file")
    except CorralError as error:
        return tell(error)
    return run_process(partial(supervise, config, passed_on(arguments), arguments.ready_file))
