"""Calls of one component to the outside: accepted where it looks for its destinations, and carried to them.

The worker resolves the name itself, for each connection, and dials an address that it has checked: a name that leads
into the worker's own network leads nowhere.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from corral.functions.engine.config import OutboundConfig
from corral.functions.engine.destinations import Destination, may_reach, networks
from corral.kernel.errors import Refused

_PIECE = 64 * 1024


class Outbound:
    """See the module. ``on_trouble`` hears, in one sentence for the owner, why a call was not carried."""

    def __init__(self, config: OutboundConfig, *, on_trouble: Callable[[str], None]) -> None:
        self._config, self._on_trouble = config, on_trouble
        self._also = networks(config.networks)
        self._servers: list[asyncio.Server] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def serve(self, listeners: Sequence[socket.socket], destinations: Sequence[Destination]) -> None:
        """Carry what comes to each listener to its destination from now on; the listeners are ours."""
        for listener, destination in zip(listeners, destinations, strict=True):
            self._servers.append(await asyncio.start_server(self._carrier(destination), sock=listener, limit=_PIECE))

    def close(self) -> None:
        """No more calls, and an end to those under way."""
        for server in self._servers:
            server.close()
        for call in self._calls:
            call.cancel()

    def _carrier(
        self, destination: Destination
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None] | None"]:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            call = asyncio.current_task()
            assert call is not None
            self._calls.add(call)
            try:
                await self._carry(destination, reader, writer)
            except asyncio.CancelledError:
                pass  # close() ended it; nobody waits for this task
            except (OSError, Refused, TimeoutError) as error:
                why = str(error) if isinstance(error, Refused) else _why(error)
                self._on_trouble(f"outbound: {destination} cannot be reached: {why}")
            finally:
                self._calls.discard(call)
                writer.close()

        return carry  # type: ignore[return-value] # a coroutine function is what a server takes

    async def _carry(
        self, destination: Destination, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._calls) > self._config.connections:
            raise Refused(f"the function has {self._config.connections} connections open (engine.outbound.connections)")
        async with asyncio.timeout(self._config.connect_s):
            there, back = await self._dial(destination)
        try:
            async with asyncio.TaskGroup() as group:
                ways = {group.create_task(_pass_on(reader, back)), group.create_task(_pass_on(there, writer))}
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait(ways, timeout=self._config.half_open_s)
                for way in ways:
                    way.cancel()
        finally:
            back.close()

    async def _dial(self, destination: Destination) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        allowed = [each for each in addresses if may_reach(each, self._also)]
        if not allowed:
            raise Refused(f"{addresses[0]} is in no network that functions may reach (engine.outbound.networks)")
        failure: OSError | None = None
        for address in allowed:
            try:
                return await asyncio.open_connection(address, destination.port, limit=_PIECE)
            except OSError as error:
                failure = error
        assert failure is not None
        raise failure


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One way, until its end, or until one side breaks off."""
    with suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


def _why(error: OSError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or type(error).__name__
    return os.strerror(error.errno)  # asyncio's own words quote the address once more
