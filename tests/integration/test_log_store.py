"""Live logs: what a writer appends, any number of readers see at once, whole and in order, whatever is killed."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zstandard

from corral.blobs.adapters.memory import MemoryBlobs
from corral.kernel.clock import SystemClock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest
from corral.kernel.errors import Conflict, InvalidSpec, StoreUnavailable, TooLarge
from corral.tasks.log_archive import FRAME_BYTES
from corral.tasks.logs import LogConfig, LogKey, LogStore, SealedLog

KEY = LogKey("default", "task_01", 0)
FAST = LogConfig(sync_every_s=0.01, seal_grace_s=0.05, seal_retry_s=0.01)


@asynccontextmanager
async def running(store: LogStore) -> AsyncIterator[LogStore]:
    async with asyncio.TaskGroup() as group:
        upkeep = group.create_task(store.run())
        try:
            yield store
        finally:
            upkeep.cancel()


def open_store(directory: Path, blobs: MemoryBlobs | None = None, config: LogConfig = FAST) -> LogStore:
    return LogStore(directory, blobs or MemoryBlobs(), SystemClock(), config)


async def whole(store: LogStore, *, offset: int = 0, follow: bool = False) -> bytes:
    return b"".join([piece async for piece in store.read(KEY, offset=offset, follow=follow)])


def suffixes(directory: Path) -> list[str]:
    return [path.suffix for path in directory.glob("*/*")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - any condition, seen from outside
            await asyncio.sleep(0.005)


async def test_a_reader_sees_bytes_before_the_log_is_closed(tmp_path: Path) -> None:
    async with running(open_store(tmp_path)) as store:
        store.append(KEY, 0, b"one\n")
        reader = store.read(KEY, follow=True)

        first = await anext(reader)
        store.append(KEY, 4, b"two\n")
        second = await anext(reader)
        store.close(KEY, 8)

        assert (first, second) == (b"one\n", b"two\n")
        assert [piece async for piece in reader] == []


async def test_a_reader_may_come_before_the_first_byte_and_read_from_any_offset(tmp_path: Path) -> None:
    async with running(open_store(tmp_path)) as store:
        async with asyncio.TaskGroup() as group:
            early = group.create_task(whole(store, follow=True))
            middle = group.create_task(whole(store, offset=3, follow=True))
            await until(lambda: store.statistics()["readers"] == 2)
            store.append(KEY, 0, b"hello ")
            store.append(KEY, 6, b"world")
            store.close(KEY, 11)

        assert early.result() == b"hello world"
        assert middle.result() == b"lo world"
        assert await whole(store, offset=500) == b""


async def test_a_repeated_or_overlapping_piece_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(KEY, 0, b"abcdef")

    received = [store.append(KEY, 0, b"abc"), store.append(KEY, 4, b"efgh"), store.append(KEY, 0, b"XXXXXXXX")]

    assert received == [6, 8, 8]
    assert await whole(store) == b"abcdefgh"


async def test_a_hole_is_refused_and_the_answer_says_where_to_go_on(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(KEY, 0, b"abc")

    with pytest.raises(Conflict) as refused:
        store.append(KEY, 5, b"x")

    assert refused.value.context["received"] == 3
    assert await whole(store) == b"abc"


async def test_closing_with_missing_bytes_is_refused_and_the_log_stays_open(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(KEY, 0, b"abc")

    with pytest.raises(Conflict):
        store.close(KEY, 5)
    store.append(KEY, 3, b"de")
    store.close(KEY, 5)
    store.close(KEY, 5)

    with pytest.raises(Conflict):
        store.append(KEY, 5, b"late")


async def test_a_finished_log_becomes_a_blob_and_its_file_goes(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    heard: list[tuple[LogKey, SealedLog]] = []

    async def hear(sealed: Sequence[tuple[LogKey, SealedLog]]) -> None:
        heard.extend(sealed)

    store = LogStore(tmp_path, blobs, SystemClock(), FAST, on_sealed=hear)
    text = b"".join(b"line %d\n" % number for number in range(400_000))
    async with running(store):
        for at in range(0, len(text), 500_000):
            store.append(KEY, at, text[at : at + 500_000])
        store.close(KEY, len(text))
        await until(lambda: store.sealed(KEY) is not None and store.statistics()["to_seal"] == 0)

    sealed = heard[0][1]
    packed = b"".join([piece async for piece in blobs.read("default", Digest.parse(sealed.digest))])
    assert len(text) > 3 * FRAME_BYTES
    assert suffixes(tmp_path) == [".sealed"]
    assert (store.size(KEY), sealed.log_bytes) == (len(text), len(text))
    assert len(packed) < len(text) / 4
    assert zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read() == text
    for offset in (0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, len(text) - 5, len(text), len(text) + 9):
        assert await whole(store, offset=offset, follow=True) == text[offset:]
    with pytest.raises(Conflict):
        store.append(KEY, len(text), b"late")


async def test_a_log_over_the_limit_is_cut_with_one_line_that_says_so(tmp_path: Path) -> None:
    config = LogConfig(log_bytes_max=1024, sync_every_s=0.01)
    store = open_store(tmp_path, config=config)

    received = [store.append(KEY, at, b"x" * 300) for at in range(0, 3000, 300)]
    reopened = open_store(tmp_path, config=config)
    reopened.append(KEY, 2700, b"y" * 600)
    reopened.close(KEY, 3300)

    assert received[-1] == 3000
    assert await whole(reopened) == b"x" * 1024 + b"\n[corral] log cut at 1.0 KiB (log_bytes_max)\n"


async def test_a_log_of_exactly_the_limit_is_not_cut(tmp_path: Path) -> None:
    store = open_store(tmp_path, config=LogConfig(log_bytes_max=1024))

    store.append(KEY, 0, b"x" * 1024)
    store.close(KEY, 1024)

    assert await whole(store) == b"x" * 1024


async def test_an_ended_run_s_log_is_closed_after_the_grace_although_its_worker_is_dead(tmp_path: Path) -> None:
    async with running(open_store(tmp_path)) as store:
        store.append(KEY, 0, b"last words")
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(whole(store, follow=True))
            store.seal(KEY)
            store.append(KEY, 10, b", and more")

        assert reading.result() == b"last words, and more"


async def test_readers_of_a_run_that_never_wrote_end_with_it(tmp_path: Path) -> None:
    async with running(open_store(tmp_path)) as store:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(whole(store, follow=True))
            await until(lambda: store.statistics()["readers"] == 1)
            store.seal(KEY)

        assert reading.result() == b""
        assert await whole(store, follow=True) == b""
        assert store.statistics()["logs"] == 0


async def test_a_store_opened_again_goes_on_where_the_files_end(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    first = open_store(tmp_path, blobs)
    first.append(KEY, 0, b"before ")
    other = LogKey("default", "task_02", 3)
    first.append(other, 0, b"closed, not sealed")
    first.close(other, 18)

    second = open_store(tmp_path, blobs)
    async with running(second):
        assert second.open_logs() == (KEY,)
        assert second.append(KEY, 0, b"before and after") == 16
        second.close(KEY, 16)
        await until(lambda: second.sealed(other) is not None and second.sealed(KEY) is not None)

        assert await whole(second) == b"before and after"


async def test_what_was_appended_survives_kill_9_of_the_scheduler(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from corral.blobs.adapters.memory import MemoryBlobs
        from corral.kernel.clock import SystemClock
        from corral.tasks.logs import LogKey, LogStore
        store = LogStore(Path(sys.argv[1]), MemoryBlobs(), SystemClock())
        for number in range(1000):
            store.append(LogKey("default", "task_01", 0), number * 10, b"%09d\\n" % number)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )

    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)  # noqa: ASYNC221

    assert ended.returncode == -9
    assert await whole(open_store(tmp_path)) == b"".join(b"%09d\n" % number for number in range(1000))


async def test_a_hundred_readers_all_read_everything(tmp_path: Path) -> None:
    async with running(open_store(tmp_path)) as store:
        pieces = 50

        async def follow() -> bytes:
            got = b""
            async for piece in store.read(KEY, follow=True):
                got += piece
            return got

        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(follow()) for _ in range(100)]
            await until(lambda: store.statistics()["readers"] == 100)
            for number in range(pieces):
                store.append(KEY, number * 1000, bytes([number]) * 1000)
                await asyncio.sleep(0.002)
            store.close(KEY, pieces * 1000)

        expected = b"".join(bytes([number]) * 1000 for number in range(pieces))
        assert all(reader.result() == expected for reader in readers)


async def test_a_log_stays_readable_while_the_blob_store_is_down_and_is_sealed_later(tmp_path: Path) -> None:
    class DownOnce(MemoryBlobs):
        tried = 0
        again = Signal()

        async def write(self, tenant: str, digest: Digest, content: AsyncIterator[bytes]) -> None:  # type: ignore[override]
            self.tried += 1
            if self.tried == 1:
                raise StoreUnavailable("injected")
            await super().write(tenant, digest, content)

    async with running(open_store(tmp_path, DownOnce())) as store:
        store.append(KEY, 0, b"text")
        store.close(KEY, 4)

        assert await whole(store, follow=True) == b"text"
        await until(lambda: store.sealed(KEY) is not None)
        assert await whole(store) == b"text"


async def test_received_bytes_become_durable(tmp_path: Path) -> None:
    async with running(open_store(tmp_path)) as store:
        store.append(KEY, 0, b"text")
        assert store.durable_bytes(KEY) == 0

        await store.wait_synced(within_s=5)

        assert store.durable_bytes(KEY) == 4


async def test_a_forgotten_task_leaves_no_file_and_ends_its_readers(tmp_path: Path) -> None:
    async with running(open_store(tmp_path)) as store:
        store.append(KEY, 0, b"text")
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(whole(store, follow=True))
            await until(lambda: store.statistics()["readers"] == 1)
            assert store.forget("default", "task_01") == ()

        assert reading.result() == b"text"
        assert suffixes(tmp_path) == []


def test_a_name_that_could_leave_the_directory_is_refused() -> None:
    for tenant, task_id, run in (("..", "task_1", 0), ("a", "../x", 0), ("a", "t.1", 0), ("a", "t", -1), ("", "t", 0)):
        with pytest.raises(InvalidSpec):
            LogKey(tenant, task_id, run)


async def test_a_piece_over_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        open_store(tmp_path).append(KEY, 0, b"x" * (1024**2 + 1))
