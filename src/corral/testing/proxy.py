"""A TCP proxy on loopback that can go deaf: the cable that somebody pulls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_PIECE_BYTES = 64 * 1024


class CutProxy:
    """Passes bytes on between whoever connects and ``target``, except while it is cut.

    While it is cut nothing moves and nothing is closed, as when packets are dropped: both ends must find out by
    themselves.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._open = asyncio.Event()
        self._open.set()

    def cut(self) -> None:
        """Let nothing through from now on."""
        self._open.clear()

    def mend(self) -> None:
        """Let everything through again, also what came meanwhile."""
        self._open.set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["CutProxy"]:
        """Listen at ``address``, a free port, while the block runs."""
        async with asyncio.TaskGroup() as pumps:
            tasks: set[asyncio.Task[None]] = set()
            ending = False

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if ending:
                    writer.transport.abort()
                else:
                    tasks.add(pumps.create_task(self._connect(reader, writer)))

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            try:
                yield self
            finally:
                ending = True
                server.close()
                for task in tasks:
                    task.cancel()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, far_writer))
                    both.create_task(self._pump(far_reader, writer))
            finally:
                far_writer.transport.abort()
        except OSError:
            pass  # nobody is there: the caller sees its connection close
        finally:
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
            await self._open.wait()
        writer.close()
