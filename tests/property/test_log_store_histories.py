"""Whatever a hostile writer, killed schedulers and late readers do: a log is a prefix of what was written."""

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from corral.blobs.adapters.memory import MemoryBlobs
from corral.kernel.clock import SystemClock
from corral.kernel.errors import Conflict
from corral.tasks.logs import LogConfig, LogKey, LogStore

KEY = LogKey("default", "task_01", 0)
TEXT = bytes(range(256)) * 8
STEPS = st.lists(
    st.tuples(st.just("append"), st.integers(0, len(TEXT)), st.integers(0, 300))
    | st.tuples(st.just("next"), st.integers(0, 300), st.just(0))
    | st.tuples(st.sampled_from(["kill", "read", "follow", "close", "seal", "sealed"]), st.just(0), st.just(0)),
    max_size=30,
)


class History:
    """A writer that repeats, jumps and overlaps; a store that is thrown away without a word; readers."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory
        self.config = LogConfig(log_bytes_max=limit, sync_every_s=0.001, seal_grace_s=0.0, seal_retry_s=0.001)
        self.blobs = MemoryBlobs()
        self.received = 0
        self.cut = False
        self.closed = False
        self.followers: list[tuple[int, asyncio.Task[bytes]]] = []
        self.open()

    def open(self) -> None:
        self.store = LogStore(self.directory, self.blobs, SystemClock(), self.config)
        self.upkeep = asyncio.get_running_loop().create_task(self.store.run())

    async def kill(self) -> None:
        for task in [self.upkeep, *(follower for _, follower in self.followers)]:
            task.cancel()
        await asyncio.wait([self.upkeep, *(follower for _, follower in self.followers)])
        self.followers.clear()
        await asyncio.to_thread(lambda: None)  # the one thread has ended what it was at, as a dead process has

    def append(self, offset: int, data: bytes) -> None:
        if offset > len(TEXT):
            return
        try:
            received = self.store.append(KEY, offset, data)
        except Conflict:
            hole = offset > self.received
            assert hole or self.closed
        else:
            assert self.cut or received >= self.received
            self.received = max(self.received, received)
            self.cut = self.cut or received > self.config.log_bytes_max

    async def whole(self, offset: int = 0, *, follow: bool = False) -> bytes:
        return b"".join([piece async for piece in self.store.read(KEY, offset=offset, follow=follow)])

    def expected(self) -> bytes:
        limit = self.config.log_bytes_max
        if not self.cut:
            return TEXT[: self.received]
        return TEXT[:limit] + b"\n[corral] log cut at %d B (log_bytes_max)\n" % limit

    async def step(self, action: str, number: int, length: int) -> None:
        match action:
            case "append":
                self.append(number, TEXT[number : number + length])
            case "next":
                self.append(self.received, TEXT[self.received : self.received + number])
            case "kill":
                await self.kill()
                self.open()
                self.received = self.received if not self.cut else self.config.log_bytes_max  # the rest is not kept
                self.closed = self.closed and self.received > 0 and KEY not in self.store.open_logs()
            case "read":
                assert await self.whole() == self.expected()
            case "follow":
                task = asyncio.get_running_loop().create_task(self.whole(len(self.followers), follow=True))
                self.followers.append((len(self.followers), task))
                await asyncio.sleep(0)
            case "close":
                self.store.close(KEY, self.received)
                self.closed = True
            case "seal":
                self.store.seal(KEY)
                self.closed = True
                await asyncio.sleep(0.002)
            case "sealed" if self.closed and self.received:
                async with asyncio.timeout(5):
                    while self.store.sealed(KEY) is None:  # noqa: ASYNC110 - seen from outside
                        await asyncio.sleep(0.001)

    async def finish(self) -> None:
        if not self.closed:
            self.store.close(KEY, self.received)
            self.closed = True
        async with asyncio.timeout(10):
            for offset, follower in self.followers:
                assert await follower == self.expected()[offset:]
            assert await self.whole(7, follow=True) == self.expected()[7:]
        await self.kill()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(STEPS, st.sampled_from([100, 700, 10_000]))
def test_readers_see_a_prefix_of_what_was_written_through_every_history(
    steps: list[tuple[str, int, int]], limit: int
) -> None:
    async def live() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        with tempfile.TemporaryDirectory() as directory:
            history = History(Path(directory), limit)
            for action, number, length in steps:
                await history.step(action, number, length)
            await history.finish()

    asyncio.run(live())
