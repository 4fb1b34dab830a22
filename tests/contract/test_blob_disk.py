"""What a disk store promises beyond the contract: crashes, several processes, eviction, full disks, little memory."""

import asyncio
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.content import pieces_of
from corral.blobs.model import StoreLimits, StoreUsage
from corral.kernel.digest import Digest
from corral.kernel.errors import BlobCorrupt, NotFound, QuotaExceeded, StoreUnavailable, UnsupportedVersion
from corral.testing.blob_contract import MIB, Stalling, content_of, read_all
from corral.testing.clocks import NOW_S, HandClock


def files_in(root: Path) -> list[Path]:
    return sorted(path for path in (root / "blobs").rglob("*") if path.is_file())


def half_written(root: Path) -> list[Path]:
    return [path for path in (root / "incoming").rglob("*") if path.is_file() and path.name != "lock"]


async def put(store: DiskBlobs, data: bytes, *, tenant: str = "ann") -> Digest:
    digest = Digest.of(data)
    await store.write(tenant, digest, pieces_of(data))
    return digest


async def test_a_closed_store_leaves_only_blobs_and_opens_again(tmp_path: Path) -> None:
    data = content_of(300_000)
    async with DiskBlobs(tmp_path) as store:
        digest = await put(store, data)

    assert not list((tmp_path / "incoming").iterdir())
    async with DiskBlobs(tmp_path) as store:
        assert await read_all(store, "ann", digest) == data
        assert await store.usage("ann") == StoreUsage(blobs=1, total_bytes=300_000)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer"])
@pytest.mark.parametrize("size_bytes", [1000, 3 * MIB])
async def test_a_corrupt_blob_is_removed_and_said_so(tmp_path: Path, damage: str, size_bytes: int) -> None:
    data = content_of(size_bytes)
    clock = HandClock()
    async with DiskBlobs(tmp_path, clock=clock) as store:
        digest = await put(store, data)
        clock.at_s += 20  # by then the disk is asked again
        (path,) = files_in(tmp_path)
        with path.open("r+b") as file:
            match damage:
                case "flipped":
                    file.seek(size_bytes - 1)
                    file.write(bytes([data[-1] ^ 1]))
                case "truncated":
                    file.truncate(size_bytes - 1)
                case "longer":
                    file.truncate(size_bytes + 1)

        with pytest.raises(BlobCorrupt):
            await read_all(store, "ann", digest)

        with pytest.raises(NotFound):
            await read_all(store, "ann", digest)
        assert await store.usage("ann") == StoreUsage(blobs=0, total_bytes=0)
        await put(store, data)
        assert await read_all(store, "ann", digest) == data


async def test_a_truncated_blob_is_missing(tmp_path: Path) -> None:
    clock = HandClock()
    async with DiskBlobs(tmp_path, clock=clock) as store:
        digest = await put(store, content_of(1000))
        os.truncate(files_in(tmp_path)[0], 10)
        clock.at_s += 20  # by then the disk is asked again

        assert await store.find_missing("ann", [digest]) == frozenset([digest])
        assert files_in(tmp_path) == []


async def test_the_half_written_files_of_the_dead_are_forgotten_and_those_of_the_living_stay(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from corral.blobs.adapters.disk import DiskBlobs
        from corral.kernel.digest import Digest

        async def never_ending():
            yield b"x" * 2_000_000
            print("half", flush=True)
            await asyncio.Event().wait()

        async def main():
            async with DiskBlobs(Path(sys.argv[1])) as store:
                await store.write("ann", Digest.of(b"x" * 4_000_000), never_ending())

        asyncio.run(main())
        """
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert await other.stdout.readline() == b"half\n"
        async with DiskBlobs(tmp_path) as store:
            assert len(half_written(tmp_path)) == 1
            assert (await store.usage("ann")).total_bytes == 4_000_000  # reserved
    finally:
        other.kill()
        await other.wait()

    async with DiskBlobs(tmp_path) as store:
        assert half_written(tmp_path) == []
        assert await store.usage("ann") == StoreUsage(blobs=0, total_bytes=0)


async def test_several_processes_write_the_same_blobs_at_once(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from corral.blobs.adapters.disk import DiskBlobs
        from corral.blobs.content import pieces_of
        from corral.kernel.digest import Digest

        async def main():
            async with DiskBlobs(Path(sys.argv[1])) as store, asyncio.TaskGroup() as writers:
                for number in range(40):
                    data = bytes([number]) * (5000 * number)
                    writers.create_task(store.write("ann", Digest.of(data), pieces_of(data)))

        asyncio.run(main())
        """
    )
    others = [await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path)) for _ in range(3)]
    async with asyncio.timeout(60):
        statuses = [await other.wait() for other in others]

    assert statuses == [0, 0, 0]
    async with DiskBlobs(tmp_path) as store:
        for number in range(40):
            data = bytes([number]) * (5000 * number)
            assert await read_all(store, "ann", Digest.of(data)) == data
        await store.clean(now_s=NOW_S)
        assert await store.usage() == StoreUsage(blobs=40, total_bytes=sum(5000 * number for number in range(40)))


async def test_cleaning_evicts_the_least_recently_used_until_under_the_budget(tmp_path: Path) -> None:
    clock = HandClock()
    async with DiskBlobs(tmp_path, limits=StoreLimits(total_bytes=250_000), clock=clock) as store:
        digests = []
        for seed in range(4):
            digests.append(await put(store, content_of(100_000, seed=seed)))
            clock.at_s += 100
        await store.find_missing("ann", [digests[0]])
        clock.at_s += 100

        report = await store.clean(now_s=clock.at_s)

        assert (report.evicted_blobs, report.evicted_bytes) == (2, 200_000)
        assert report.left == StoreUsage(blobs=2, total_bytes=200_000)
        assert await store.find_missing("ann", digests) == frozenset(digests[1:3])
        assert (await store.clean(now_s=clock.at_s)).evicted_blobs == 0


async def test_cleaning_evicts_by_age_but_never_within_the_grace(tmp_path: Path) -> None:
    clock = HandClock()
    limits = StoreLimits(age_s=1000.0, total_bytes=1)
    async with DiskBlobs(tmp_path, limits=limits, grace_s=60.0, clock=clock) as store:
        old = await put(store, content_of(1000))
        clock.at_s += 2000
        fresh = await put(store, content_of(1000, seed=1))
        clock.at_s += 59

        report = await store.clean(now_s=clock.at_s)

        assert report.evicted_blobs == 1
        assert await store.find_missing("ann", [old, fresh]) == frozenset([old])


async def test_a_blob_that_is_being_read_is_not_evicted(tmp_path: Path) -> None:
    clock = HandClock()
    data = content_of(5 * MIB)
    async with DiskBlobs(tmp_path, limits=StoreLimits(total_bytes=0, age_s=1.0), grace_s=0.0, clock=clock) as store:
        digest = await put(store, data)
        async with aclosing(store.read("ann", digest)) as pieces:
            first = await anext(pieces)
            clock.at_s += 10_000

            assert (await store.clean(now_s=clock.at_s)).evicted_blobs == 0
            assert first + b"".join([piece async for piece in pieces]) == data

        clock.at_s += 10_000
        assert (await store.clean(now_s=clock.at_s)).evicted_blobs == 1


async def test_a_reservation_counts_and_a_failed_write_gives_it_back(tmp_path: Path) -> None:
    data = content_of(200_000)
    slow = Stalling(data)
    async with DiskBlobs(tmp_path, limits=StoreLimits(tenant_bytes=300_000)) as store:
        async with asyncio.TaskGroup() as writers:
            writing = writers.create_task(store.write("ann", Digest.of(data), slow))
            await slow.reached.wait()
            with pytest.raises(QuotaExceeded, match="ann"):
                await put(store, content_of(200_000, seed=1))
            writing.cancel()

        assert await store.usage("ann") == StoreUsage(blobs=0, total_bytes=0)
        assert half_written(tmp_path) == []
        await put(store, content_of(200_000, seed=1))


async def test_a_tenants_own_quota_comes_before_the_general_one(tmp_path: Path) -> None:
    def quota_bytes(tenant: str) -> int | None:
        return 10 if tenant == "ann" else None

    async with DiskBlobs(tmp_path, limits=StoreLimits(tenant_bytes=1000), quota_bytes=quota_bytes) as store:
        with pytest.raises(QuotaExceeded):
            await put(store, content_of(11))
        await put(store, content_of(1000), tenant="bob")
        with pytest.raises(QuotaExceeded):
            await put(store, content_of(1), tenant="bob")


@pytest.mark.parametrize("size_bytes", [1000, 3 * MIB])
@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOSPC, QuotaExceeded, "disk is full"),
        (errno.EDQUOT, QuotaExceeded, "disk is full"),
        (errno.EIO, StoreUnavailable, "failed while writing"),
    ],
)
async def test_a_disk_that_fails_ends_in_its_own_error_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size_bytes: int,
    number: int,
    error: type[Exception],
    words: str,
) -> None:
    def failing(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    async with DiskBlobs(tmp_path) as store:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", failing)
            with pytest.raises(error, match=words):
                await put(store, content_of(size_bytes))

        assert half_written(tmp_path) == []
        assert await store.usage("ann") == StoreUsage(blobs=0, total_bytes=0)
        await put(store, content_of(size_bytes))


async def test_one_bad_blob_of_a_group_does_not_harm_the_others(tmp_path: Path) -> None:
    async with DiskBlobs(tmp_path, limits=StoreLimits(tenant_bytes=20_000)) as store:
        async with asyncio.TaskGroup() as writers:
            for seed in range(30):
                writers.create_task(put(store, content_of(500, seed=seed)))

            async def put_too_much() -> None:
                with pytest.raises(QuotaExceeded):
                    await put(store, content_of(20_001))

            writers.create_task(put_too_much())

        assert await store.usage("ann") == StoreUsage(blobs=30, total_bytes=15_000)
        assert half_written(tmp_path) == []


async def test_a_cancelled_small_write_does_not_stop_the_group(tmp_path: Path) -> None:
    async with DiskBlobs(tmp_path) as store, asyncio.timeout(30):
        async with asyncio.TaskGroup() as writers:
            writing = [writers.create_task(put(store, content_of(500, seed=seed))) for seed in range(40)]
            await writing[1]
            for one in writing[::2]:
                one.cancel()

        for one in writing[1::2]:
            assert await store.find_missing("ann", [one.result()]) == frozenset()


async def test_an_error_of_the_contents_own_disk_is_not_ours(tmp_path: Path) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise OSError(errno.EIO, "the sender's disk")

    async with DiskBlobs(tmp_path) as store:
        with pytest.raises(OSError, match="the sender's disk"):
            await store.write("ann", Digest.of(b"x" * 200_000), failing())


async def test_a_folder_of_a_newer_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("2\n")

    with pytest.raises(UnsupportedVersion, match="layout"):
        async with DiskBlobs(tmp_path):
            pass


async def test_a_folder_that_cannot_be_made_is_an_unavailable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreUnavailable, match="opening the store"):
        async with DiskBlobs(tmp_path / "file" / "below"):
            pass


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    async with DiskBlobs(tmp_path) as store:
        data = content_of(3 * MIB)
        digest = await put(store, data)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(30):
            await put(store, content_of(100_000))
            async with aclosing(store.read("ann", digest)) as pieces:
                await anext(pieces)
            await read_all(store, "ann", digest)
            with pytest.raises(NotFound):
                await read_all(store, "ann", Digest.of(b"never"))

        assert len(os.listdir("/proc/self/fd")) == before


MEASURE = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from corral.blobs.adapters.disk import DiskBlobs
    from corral.kernel.digest import Digest, Digester

    SIZE = int(sys.argv[2])
    PIECE = bytes(range(256)) * 4096

    async def content():
        for _ in range(SIZE // len(PIECE)):
            yield PIECE

    async def main():
        digester = Digester()
        for _ in range(SIZE // len(PIECE)):
            digester.update(PIECE)
        digest = digester.digest()
        async with DiskBlobs(Path(sys.argv[1])) as store:
            await store.write("ann", digest, content())
            async for piece in store.read("ann", digest):
                pass

    asyncio.run(main())
    status = Path("/proc/self/status").read_text()  # getrusage would count the process that started this one, too
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
    """
)


@pytest.mark.parametrize("size_mib", [256, pytest.param(2048, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
async def test_a_large_blob_costs_little_memory(tmp_path: Path, size_mib: int) -> None:
    argv = [sys.executable, "-c", MEASURE, str(tmp_path), str(size_mib * MIB)]

    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=240, check=True)

    assert int(done.stdout) < 64, f"peak RSS of {done.stdout.strip()} MiB"
