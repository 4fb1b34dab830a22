"""The contract suite of a blob store.

Subclass :class:`BlobStoreContract`, override the fixtures, and every claim of ``corral.blobs.ports`` is tested
against your store::

    class TestMyBlobs(BlobStoreContract):
        @pytest.fixture
        async def store(self) -> AsyncIterator[BlobStore]: ...
        @pytest.fixture
        async def bounded_store(self) -> AsyncIterator[BlobStore]:
            '''blob_bytes=BLOB_LIMIT_BYTES and, where supported, tenant_bytes=TENANT_QUOTA_BYTES'''
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import ClassVar, Final

import pytest

from corral.blobs.content import pieces_of
from corral.blobs.machine import PIECE_BYTES
from corral.blobs.ports import BlobStore
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec, NotFound, QuotaExceeded, TooLarge

MIB: Final = 1024 * 1024
BLOB_LIMIT_BYTES: Final = 2 * MIB
TENANT_QUOTA_BYTES: Final = 3 * MIB

SIZES: Final = (0, 1, 1000, 64 * 1024, 64 * 1024 + 1, MIB - 1, MIB, MIB + 1, 5 * MIB, 9 * MIB + 17)
FUNCTIONS: Final = (HashFunction.BLAKE3, HashFunction.SHA256)


def content_of(size_bytes: int, *, seed: int = 0) -> bytes:
    """Deterministic bytes that do not repeat with any power of two."""
    block = bytes((seed + 31 * i + i * i) % 251 for i in range(65_521))
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


async def read_all(
    store: BlobStore, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
) -> bytes:
    """The bytes of a read, with every piece checked against the bound on pieces."""
    pieces = [piece async for piece in store.read(tenant, digest, offset=offset, length=length)]
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


async def in_pieces(data: bytes, sizes: Sequence[int]) -> AsyncIterator[bytes]:
    """``data`` in pieces of these sizes, over and over."""
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        yield data[position : position + size]
        position += size
        turn += 1


class Unread:
    """Content that must not be read to its end; ``pieces_read`` counts."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.pieces_read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._data), 1024):
            self.pieces_read += 1
            yield self._data[start : start + 1024]


class Stalling:
    """Content that stops in its middle: ``reached`` is set there, and it goes on when ``release`` is set."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.reached = asyncio.Event()
        self.release = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        middle = len(self._data) // 2
        yield self._data[:middle]
        self.reached.set()
        await self.release.wait()
        yield self._data[middle:]


class BlobStoreContract:
    """What every BlobStore promises."""

    enforces_quota: ClassVar[bool] = True

    @pytest.fixture
    def store(self) -> BlobStore:
        """An empty store without small bounds; yours may be an async generator."""
        raise NotImplementedError("a subclass gives the store")

    @pytest.fixture
    def bounded_store(self) -> BlobStore:
        """An empty store with the bounds of this module; yours may be an async generator."""
        raise NotImplementedError("a subclass gives the store")

    @pytest.mark.parametrize("function", FUNCTIONS)
    @pytest.mark.parametrize("size_bytes", SIZES)
    async def test_a_blob_comes_back_as_it_went_in(
        self, store: BlobStore, size_bytes: int, function: HashFunction
    ) -> None:
        data = content_of(size_bytes)
        digest = Digest.of(data, function)

        await store.write("ann", digest, pieces_of(data))

        assert await read_all(store, "ann", digest) == data

    @pytest.mark.parametrize("sizes", [(1,), (7, 0, 8191), (3 * MIB,), (65_536,)])
    async def test_it_does_not_matter_how_the_content_is_cut(self, store: BlobStore, sizes: tuple[int, ...]) -> None:
        data = content_of(20_000 if sizes == (1,) else 4 * MIB + 5)
        digest = Digest.of(data)

        await store.write("ann", digest, in_pieces(data, sizes))

        assert await read_all(store, "ann", digest) == data

    async def test_missing_are_exactly_those_never_written(self, store: BlobStore) -> None:
        there = [Digest.of(content_of(size)) for size in (0, 10, 100_000)]
        absent = [Digest.of(b"never"), Digest.of(content_of(10), HashFunction.SHA256)]
        for size in (0, 10, 100_000):
            await store.write("ann", Digest.of(content_of(size)), pieces_of(content_of(size)))

        missing = await store.find_missing("ann", [*there, *absent, *there])

        assert missing == frozenset(absent)
        assert await store.find_missing("ann", []) == frozenset()

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 0), (0, 1), (0, 10), (5, None), (MIB - 1, 2), (MIB, MIB), (2 * MIB + 9, None), (2 * MIB + 10, None),
         (9 * MIB, 5), (3, 9 * MIB), (2 * MIB + 5, 100)],
    )  # fmt: skip
    async def test_a_range_is_cut_at_the_end(self, store: BlobStore, offset: int, length: int | None) -> None:
        data = content_of(2 * MIB + 10)
        digest = Digest.of(data)
        await store.write("ann", digest, pieces_of(data))

        found = await read_all(store, "ann", digest, offset=offset, length=length)

        assert found == (data[offset:] if length is None else data[offset : offset + length])

    async def test_a_negative_range_is_refused(self, store: BlobStore) -> None:
        digest = Digest.of(b"content")
        await store.write("ann", digest, pieces_of(b"content"))

        with pytest.raises(InvalidSpec, match="negative"):
            await read_all(store, "ann", digest, offset=-1)
        with pytest.raises(InvalidSpec, match="negative"):
            await read_all(store, "ann", digest, length=-1)

    @pytest.mark.parametrize("size_bytes", [0, 1000, 3 * MIB])
    async def test_an_absent_blob_is_not_found_whatever_the_range(self, store: BlobStore, size_bytes: int) -> None:
        digest = Digest.of(content_of(size_bytes))

        for offset, length in ((0, None), (0, 0), (10, 10)):
            with pytest.raises(NotFound):
                await read_all(store, "ann", digest, offset=offset, length=length)

    @pytest.mark.parametrize("size_bytes", [10, 100_000, 9 * MIB])
    @pytest.mark.parametrize("function", FUNCTIONS)
    async def test_content_of_another_hash_stores_nothing(
        self, store: BlobStore, size_bytes: int, function: HashFunction
    ) -> None:
        digest = Digest.of(content_of(size_bytes), function)
        other = content_of(size_bytes, seed=1)

        with pytest.raises(InvalidSpec, match="not what its digest says"):
            await store.write("ann", digest, pieces_of(other))

        await self._assert_absent(store, digest)
        await self._assert_absent(store, Digest.of(other, function))

    @pytest.mark.parametrize("size_bytes", [10, 100_000, 9 * MIB])
    @pytest.mark.parametrize("difference", [-1, 1])
    async def test_content_of_another_size_stores_nothing(
        self, store: BlobStore, size_bytes: int, difference: int
    ) -> None:
        digest = Digest.of(content_of(size_bytes))

        with pytest.raises(InvalidSpec):
            await store.write("ann", digest, pieces_of(content_of(size_bytes + difference)))

        await self._assert_absent(store, digest)

    async def test_after_a_refused_write_the_right_content_is_taken(self, store: BlobStore) -> None:
        data = content_of(200_000)
        with pytest.raises(InvalidSpec):
            await store.write("ann", Digest.of(data), pieces_of(content_of(200_000, seed=1)))

        await store.write("ann", Digest.of(data), pieces_of(data))

        assert await read_all(store, "ann", Digest.of(data)) == data

    async def test_an_error_of_the_content_comes_through_and_stores_nothing(self, store: BlobStore) -> None:
        async def failing() -> AsyncIterator[bytes]:
            yield content_of(70_000)
            raise ConnectionResetError("the sender went away")

        digest = Digest.of(content_of(140_000))

        with pytest.raises(ConnectionResetError, match="went away"):
            await store.write("ann", digest, failing())

        await self._assert_absent(store, digest)

    @pytest.mark.parametrize("size_bytes", [20_000, 9 * MIB])
    async def test_a_blob_that_is_there_is_not_read_again(self, store: BlobStore, size_bytes: int) -> None:
        data = content_of(size_bytes)
        await store.write("ann", Digest.of(data), pieces_of(data))
        again = Unread(data)

        await store.write("ann", Digest.of(data), again)

        assert again.pieces_read == 0

    @pytest.mark.parametrize("size_bytes", [20_000, 9 * MIB])
    async def test_concurrent_writers_of_one_digest_collapse(self, store: BlobStore, size_bytes: int) -> None:
        data = content_of(size_bytes)
        first = Stalling(data)
        others = [Unread(data) for _ in range(5)]

        async with asyncio.timeout(60), asyncio.TaskGroup() as writers:
            writers.create_task(store.write("ann", Digest.of(data), first))
            await first.reached.wait()
            for other in others:
                writers.create_task(store.write("ann", Digest.of(data), other))
            await asyncio.sleep(0)
            first.release.set()

        assert await read_all(store, "ann", Digest.of(data)) == data
        assert [other.pieces_read for other in others] == [0] * 5

    async def test_when_the_first_writer_fails_the_next_one_writes(self, store: BlobStore) -> None:
        data = content_of(200_000)
        digest = Digest.of(data)
        wrong = Stalling(content_of(200_000, seed=1))

        async with asyncio.timeout(60), asyncio.TaskGroup() as writers:

            async def write_wrong() -> None:
                with pytest.raises(InvalidSpec):
                    await store.write("ann", digest, wrong)

            writers.create_task(write_wrong())
            await wrong.reached.wait()
            writers.create_task(store.write("ann", digest, pieces_of(data)))
            await asyncio.sleep(0)
            wrong.release.set()

        assert await read_all(store, "ann", digest) == data

    async def test_many_writers_of_many_blobs_do_not_disturb_each_other(self, store: BlobStore) -> None:
        contents = [content_of(1000 + 40_000 * i, seed=i) for i in range(12)]

        async with asyncio.timeout(60), asyncio.TaskGroup() as writers:
            for data in contents * 2:
                writers.create_task(store.write("ann", Digest.of(data), in_pieces(data, (8191,))))

        for data in contents:
            assert await read_all(store, "ann", Digest.of(data)) == data

    @pytest.mark.parametrize("size_bytes", [20_000, 9 * MIB])
    async def test_a_blob_is_invisible_until_it_is_complete(self, store: BlobStore, size_bytes: int) -> None:
        data = content_of(size_bytes)
        digest = Digest.of(data)
        slow = Stalling(data)

        async with asyncio.timeout(60), asyncio.TaskGroup() as writers:
            writers.create_task(store.write("ann", digest, slow))
            await slow.reached.wait()
            await self._assert_absent(store, digest)
            slow.release.set()

        assert await read_all(store, "ann", digest) == data

    @pytest.mark.parametrize("size_bytes", [20_000, 20 * MIB])
    async def test_a_cancelled_write_leaves_nothing(self, store: BlobStore, size_bytes: int) -> None:
        data = content_of(size_bytes)
        digest = Digest.of(data)
        slow = Stalling(data)

        async with asyncio.timeout(60), asyncio.TaskGroup() as writers:
            writing = writers.create_task(store.write("ann", digest, slow))
            await slow.reached.wait()
            writing.cancel()

        assert writing.cancelled()
        await self._assert_absent(store, digest)
        await store.write("ann", digest, pieces_of(data))
        assert await read_all(store, "ann", digest) == data

    async def test_tenants_do_not_see_each_other(self, store: BlobStore) -> None:
        data = content_of(1000)
        digest = Digest.of(data)
        await store.write("ann", digest, pieces_of(data))

        await self._assert_absent(store, digest, tenant="bob")
        await store.delete("bob", [digest])
        await store.write("bob", digest, pieces_of(data))
        await store.delete("ann", [digest])

        assert await read_all(store, "bob", digest) == data
        await self._assert_absent(store, digest, tenant="ann")

    @pytest.mark.parametrize("tenant", ["", ".", "..", "a/b", "../ann", "a\0b", "ann\n", "-x", "ä", "x" * 65])
    async def test_a_tenant_is_one_component_of_a_path(self, store: BlobStore, tenant: str) -> None:
        digest = Digest.of(b"x")

        with pytest.raises(InvalidSpec, match="tenant"):
            await store.write(tenant, digest, pieces_of(b"x"))
        with pytest.raises(InvalidSpec, match="tenant"):
            await store.find_missing(tenant, [digest])
        with pytest.raises(InvalidSpec, match="tenant"):
            await read_all(store, tenant, digest)
        with pytest.raises(InvalidSpec, match="tenant"):
            await store.delete(tenant, [digest])

    @pytest.mark.parametrize("hash_text", ["", "../../../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
    async def test_a_malformed_digest_is_refused(self, store: BlobStore, hash_text: str) -> None:
        digest = Digest(HashFunction.BLAKE3, hash_text, 1)

        with pytest.raises(InvalidSpec, match="digest"):
            await store.write("ann", digest, pieces_of(b"x"))
        with pytest.raises(InvalidSpec, match="digest"):
            await store.find_missing("ann", [digest])
        with pytest.raises(InvalidSpec, match="digest"):
            await read_all(store, "ann", digest)

    async def test_delete_is_idempotent(self, store: BlobStore) -> None:
        contents = [content_of(size) for size in (0, 10, 100_000)]
        digests = [Digest.of(data) for data in contents]
        for data, digest in zip(contents, digests, strict=True):
            await store.write("ann", digest, pieces_of(data))

        await store.delete("ann", digests[:2])
        await store.delete("ann", [*digests[:2], Digest.of(b"never")])

        assert await store.find_missing("ann", digests) == frozenset(digests[:2])

    async def test_a_reader_may_leave_early(self, store: BlobStore) -> None:
        data = content_of(9 * MIB)
        digest = Digest.of(data)
        await store.write("ann", digest, pieces_of(data))

        for _ in range(20):
            async with aclosing(store.read("ann", digest)) as pieces:
                async for piece in pieces:
                    assert piece == data[: len(piece)]
                    break

        assert await read_all(store, "ann", digest) == data

    async def test_many_read_one_blob_at_once(self, store: BlobStore) -> None:
        data = content_of(3 * MIB)
        digest = Digest.of(data)
        await store.write("ann", digest, pieces_of(data))

        async with asyncio.timeout(60), asyncio.TaskGroup() as readers:
            reads = [readers.create_task(read_all(store, "ann", digest)) for _ in range(8)]

        assert all(read.result() == data for read in reads)

    async def test_a_blob_over_the_limit_is_refused_unread(self, bounded_store: BlobStore) -> None:
        data = content_of(BLOB_LIMIT_BYTES + 1)
        content = Unread(data)

        with pytest.raises(TooLarge, match="blob_bytes"):
            await bounded_store.write("ann", Digest.of(data), content)
        await bounded_store.write("bob", Digest.of(data[:-1]), pieces_of(data[:-1]))

        assert content.pieces_read == 0
        await self._assert_absent(bounded_store, Digest.of(data))

    async def test_a_tenant_cannot_hold_more_than_its_quota(self, bounded_store: BlobStore) -> None:
        if not self.enforces_quota:
            pytest.skip("this store has no quotas")
        first, second = content_of(2 * MIB), content_of(2 * MIB, seed=1)
        await bounded_store.write("ann", Digest.of(first), pieces_of(first))

        with pytest.raises(QuotaExceeded, match="ann"):
            await bounded_store.write("ann", Digest.of(second), pieces_of(second))
        await bounded_store.write("bob", Digest.of(second), pieces_of(second))

        await self._assert_absent(bounded_store, Digest.of(second))
        await bounded_store.delete("ann", [Digest.of(first)])
        await bounded_store.write("ann", Digest.of(second), pieces_of(second))
        assert await read_all(bounded_store, "ann", Digest.of(second)) == second

    async def test_writers_at_once_cannot_overshoot_a_quota_together(self, bounded_store: BlobStore) -> None:
        if not self.enforces_quota:
            pytest.skip("this store has no quotas")
        contents = [content_of(MIB, seed=seed) for seed in range(6)]
        stored: list[Digest] = []

        async def write(data: bytes) -> None:
            try:
                await bounded_store.write("ann", Digest.of(data), pieces_of(data))
            except QuotaExceeded:
                return
            stored.append(Digest.of(data))

        async with asyncio.timeout(60), asyncio.TaskGroup() as writers:
            for data in contents:
                writers.create_task(write(data))

        assert len(stored) == 3
        assert await bounded_store.find_missing("ann", stored) == frozenset()

    async def _assert_absent(self, store: BlobStore, digest: Digest, *, tenant: str = "ann") -> None:
        assert await store.find_missing(tenant, [digest]) == frozenset([digest])
        with pytest.raises(NotFound):
            await read_all(store, tenant, digest)
