"""The door for Bazel as processes of its own, at one port: this is the scheduler's side of them.

The kernel spreads connections over the processes (SO_REUSEPORT). Each opens the database and the store by itself; for
executions they come to a socket in a folder that only we may enter.
"""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from corral.app.children import Child
from corral.app.config_sections import SupervisorConfig
from corral.doors.reapi.server import serving_executions
from corral.doors.reapi.services import Actions, Services
from corral.kernel.concurrency import finish
from corral.kernel.errors import Conflict, SchedulerUnavailable
from corral.wire.address import check_free, join_address, split_address

ROLE: Final = "reapi_process"
_STOP_S: Final = 5.0


@asynccontextmanager
async def serving_by_processes(
    services: Services, *, actions: Actions, supervisor: SupervisorConfig, arguments: Sequence[str]
) -> AsyncIterator[int]:
    """Serve at ``reapi.address`` while the block runs; gives the port. ``arguments`` are what the processes are given.

    Raises: InvalidSpec when they refuse their configuration; Conflict when the port is taken; SchedulerUnavailable
    when one dies again and again.
    """
    with (
        _held(services.config.address) as (address, port),
        tempfile.TemporaryDirectory(prefix="corral-reapi-") as folder,
    ):
        socket_address = f"unix:{folder}/executions"
        given = (*arguments, "--listen", address, "--executions", socket_address)
        doors = [Child(ROLE, supervisor, lambda: given, dict) for _ in range(services.config.processes)]
        async with serving_executions(services, actions, socket_address), asyncio.TaskGroup() as group:
            ready = [asyncio.Event() for _ in doors]
            keeping = [
                group.create_task(door.keep_running(lambda _line, at=event: at.set()), name=ROLE)  # type: ignore[misc]
                for door, event in zip(doors, ready, strict=True)
            ]
            try:
                await _wait_ready(ready, within_s=supervisor.ready_s)
                yield port
            finally:
                for task in keeping:
                    task.cancel()
                await finish(_stop(doors), within_s=2 * _STOP_S)


@contextmanager
def _held(address: str) -> Iterator[tuple[str, int]]:
    """An address and its port, ours, at which nobody listens yet: the processes do. Raises Conflict, InvalidSpec."""
    check_free(address, setting="reapi.address")  # asked without sharing, or two of us would share a port unawares
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as holding:
        holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            holding.bind((host, port))
        except OSError as error:
            raise Conflict(f"{address} was taken by another process just now") from error
        yield join_address(host, holding.getsockname()[1]), holding.getsockname()[1]


async def _wait_ready(ready: Sequence[asyncio.Event], *, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            for each in ready:
                await each.wait()
    except TimeoutError:
        raise SchedulerUnavailable(
            f"the door's processes were not ready within {within_s:g} s", cure="their own words are above"
        ) from None


async def _stop(doors: Sequence[Child]) -> None:
    async with asyncio.TaskGroup() as group:
        for door in doors:
            group.create_task(door.stop(_STOP_S))
