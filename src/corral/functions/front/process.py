"""The process of a front: ``python -m corral.functions.front.process``, started and fed by its worker.

Descriptor 3 is a stream to the worker, messages as lines of JSON: routes come in, demands go out. Descriptors from 4 on
are listening sockets. When the worker goes, the front goes, after what is in flight.
"""

import asyncio
import gc
import random
import signal
import socket
import sys
from typing import Final

import msgspec
import uvloop

from corral.functions.frames import Counters
from corral.functions.front.front import Front
from corral.functions.front.lanes import NOBODY
from corral.functions.front.limits import FrontConfig
from corral.functions.front.listener import Listener
from corral.functions.front.messages import LINE_MAX, FromFront, ToFront
from corral.functions.front.slices import take_short_slices
from corral.functions.model import Demand

CONTROL: Final = 3
LISTENER: Final = 4
_TELL_S: Final = 0.25


class Process:
    """The front and its worker's line."""

    def __init__(self, config: FrontConfig) -> None:
        self._config = config
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._told: tuple[tuple[Demand, ...], dict[str, Counters]] = ((), {})
        self._front = Front(config, rng=random.Random(), urgent=self._hurry.set)
        self._writer: asyncio.StreamWriter
        self._decode = msgspec.json.Decoder(ToFront).decode

    async def run(self) -> None:
        """Serve until told to drain, or until the worker is gone."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        reader, self._writer = await asyncio.open_connection(sock=socket.socket(fileno=CONTROL), limit=LINE_MAX)
        self._take(await reader.readline())  # the routes first: callers may be waiting already
        listener = socket.socket(fileno=LISTENER)
        self._front.port = listener.getsockname()[1]
        gc.freeze()  # a look at all that was loaded takes as long as a hundred requests, and all callers wait for it
        accepting = Listener(listener, self._front.lanes.of(NOBODY), self._front.connected)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in (self._hear(reader), self._report(), self._front.run())]
            await self._stop.wait()
            accepting.close()
            self._front.drain()
            await self._drained()
            for task in tasks:
                task.cancel()

    async def _drained(self) -> None:
        end_s = asyncio.get_running_loop().time() + self._config.drain_s
        while not self._front.idle and asyncio.get_running_loop().time() < end_s:  # noqa: ASYNC110 (bounded, at the very end)
            await asyncio.sleep(0.05)

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while not self._stop.is_set():
            self._take(await reader.readline())

    def _take(self, line: bytes) -> None:
        """What the worker says; nothing, when it is gone."""
        message = self._decode(line) if line else ToFront(drain=True)
        if message.update is not None:
            self._tell(stale=not self._front.update(message.update))
        if message.drain:
            self._stop.set()

    async def _report(self) -> None:
        """Tell the demands when they changed: at once when that is urgent, else a few times a second."""
        while True:
            try:
                async with asyncio.timeout(_TELL_S):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            hurried = self._hurry.is_set()
            self._hurry.clear()
            if hurried or self._front.has_traces or self._now() != self._told:
                self._tell()
                await asyncio.sleep(0.01)

    def _now(self) -> tuple[tuple[Demand, ...], dict[str, Counters]]:
        return self._front.demands(), self._front.counters()

    def _tell(self, *, stale: bool = False) -> None:
        self._told = demands, counters = self._now()
        table = self._front.table
        message = FromFront(
            epoch=table.epoch,
            version=table.version,
            demands=demands,
            stale=stale,
            counters=counters,
            traces=self._front.take_traces(),
            over=self._front.take_over(),
        )
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")


async def serve(config: FrontConfig) -> None:
    """One front, to its end."""
    await Process(config).run()


def main() -> None:
    """The first argument is the configuration, as JSON."""
    take_short_slices()
    uvloop.run(serve(msgspec.json.decode(sys.argv[1], type=FrontConfig)))


if __name__ == "__main__":
    main()
