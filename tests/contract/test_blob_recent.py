"""What a disk store answers without the disk: only what is still so, for a few seconds, within its bounds."""

import os
from pathlib import Path

import pytest

from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.adapters.disk_recent import CONTENT_BYTES_MAX
from corral.blobs.content import pieces_of
from corral.blobs.model import StoreLimits
from corral.blobs.ports import BlobStore
from corral.kernel.digest import Digest
from corral.kernel.errors import NotFound
from corral.testing.blob_contract import content_of, read_all
from corral.testing.clocks import HandClock

GRACE_S = 60.0
FRESH_S = 10.0  # as long as a use on record is not put there anew
SMALL = content_of(100)


async def put(store: BlobStore, data: bytes, tenant: str = "ann") -> Digest:
    digest = Digest.of(data)
    await store.write(tenant, digest, pieces_of(data))
    return digest


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of blobs that the disk was asked for."""
    asked: list[str] = []

    def noting(name: str) -> None:
        inner = getattr(os, name)

        def call(path: object, *args: object, **kwargs: object) -> object:
            if isinstance(path, str) and "/blobs/" in path:
                asked.append(path)
            return inner(path, *args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("access", "stat", "open"):
        noting(name)
    return asked


@pytest.mark.parametrize("written", [True, False])
async def test_what_was_just_written_or_seen_is_known_without_the_disk(
    tmp_path: Path, asked: list[str], written: bool
) -> None:
    clock = HandClock()
    async with DiskBlobs(tmp_path, clock=clock) as store, DiskBlobs(tmp_path, clock=clock) as other:
        digest = await put(store if written else other, SMALL)
        if not written:
            assert await read_all(store, "ann", digest) == SMALL
        asked.clear()

        assert await store.find_missing("ann", [digest, digest]) == frozenset()
        assert await read_all(store, "ann", digest) == SMALL
        assert await read_all(store, "ann", digest, offset=10, length=20) == SMALL[10:30]
        assert await put(store, SMALL) == digest
        assert asked == []

        clock.at_s += FRESH_S + 1
        assert await store.find_missing("ann", [digest]) == frozenset()
        assert len(set(asked)) == 1


async def test_what_is_known_of_one_tenant_says_nothing_of_another(tmp_path: Path) -> None:
    async with DiskBlobs(tmp_path) as store:
        digest = await put(store, SMALL)

        assert await store.find_missing("bob", [digest]) == frozenset([digest])
        with pytest.raises(NotFound):
            await read_all(store, "bob", digest)


@pytest.mark.parametrize(
    "how", ["deleted", "deleted by another process", "evicted by another process", "corrupt there"]
)
async def test_what_was_removed_is_known_to_be_missing_at_once(tmp_path: Path, how: str) -> None:
    clock = HandClock()
    limits = StoreLimits(total_bytes=0)
    async with (
        DiskBlobs(tmp_path, limits=limits, grace_s=GRACE_S, clock=clock) as store,
        DiskBlobs(tmp_path, limits=limits, grace_s=0.0, clock=clock) as other,
    ):
        digest = await put(store, SMALL)
        assert await store.find_missing("ann", [digest]) == frozenset()
        match how:
            case "deleted":
                await store.delete("ann", [digest])
            case "deleted by another process":
                await other.delete("ann", [digest])
            case "evicted by another process":  # whose clock is wrong
                assert (await other.clean(now_s=clock.at_s + 1)).evicted_blobs == 1
            case _:
                os.truncate(next(path for path in (tmp_path / "blobs").rglob("b3-*")), 10)
                assert await other.find_missing("ann", [digest]) == frozenset([digest])

        assert await store.find_missing("ann", [digest]) == frozenset([digest])
        with pytest.raises(NotFound):
            await read_all(store, "ann", digest)
        await put(store, SMALL)
        assert await read_all(other, "ann", digest) == SMALL


async def test_a_use_answered_from_memory_keeps_the_blob_for_a_while(tmp_path: Path) -> None:
    clock = HandClock()
    limits = StoreLimits(total_bytes=0)
    async with DiskBlobs(tmp_path, limits=limits, grace_s=GRACE_S, clock=clock) as store:
        digest = await put(store, SMALL)
        for _ in range(10):
            clock.at_s += FRESH_S * 0.7
            assert await store.find_missing("ann", [digest]) == frozenset()

        clock.at_s += GRACE_S - FRESH_S

        assert (await store.clean(now_s=clock.at_s)).evicted_blobs == 0


async def test_who_needs_durable_content_is_not_told_what_was_only_written_back(tmp_path: Path) -> None:
    async with DiskBlobs(tmp_path, settle_s=3600.0) as store:
        digest = await put(store.write_back, SMALL)
        assert await store.write_back.find_missing("ann", [digest]) == frozenset()
        path = next(path for path in (tmp_path / "blobs").rglob("b3-*"))
        assert path.stat().st_mode & 0o777 == 0o700

        assert await store.find_missing("ann", [digest]) == frozenset()

        assert path.stat().st_mode & 0o777 == 0o600


async def test_memory_has_bounds_and_the_oldest_give_way(tmp_path: Path, asked: list[str]) -> None:
    two_contents = 2 * CONTENT_BYTES_MAX
    async with DiskBlobs(tmp_path, recent_blobs=3, recent_bytes=two_contents, clock=HandClock()) as store:
        contents = [content_of(CONTENT_BYTES_MAX, seed=seed) for seed in range(4)]
        digests = [await put(store, data) for data in contents]
        too_large = await put(store, content_of(CONTENT_BYTES_MAX + 1))
        asked.clear()

        assert await store.find_missing("ann", [*digests[2:], too_large]) == frozenset()
        assert await read_all(store, "ann", digests[3]) == contents[3]
        assert asked == []
        assert await store.find_missing("ann", digests[:2]) == frozenset()
        assert len(set(asked)) == 2
