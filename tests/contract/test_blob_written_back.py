"""Blobs that are written back: whole and visible at once, on the disk some seconds later, never half there."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.adapters.tiered import Tier, TieredBlobs
from corral.blobs.content import pieces_of
from corral.blobs.model import StoreLimits, StoreUsage
from corral.blobs.ports import BlobStore
from corral.kernel.digest import Digest
from corral.testing.blob_contract import (
    BLOB_LIMIT_BYTES,
    MIB,
    TENANT_QUOTA_BYTES,
    BlobStoreContract,
    content_of,
    read_all,
)

WRITTEN, SYNCED, SETTLED = 0o700, 0o500, 0o600
LATER_S = 3600.0


class TestDiskBlobsWrittenBack(BlobStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        async with DiskBlobs(tmp_path / "blobs") as disk:
            yield disk.write_back

    @pytest.fixture
    async def bounded_store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        limits = StoreLimits(blob_bytes=BLOB_LIMIT_BYTES, tenant_bytes=TENANT_QUOTA_BYTES)
        async with DiskBlobs(tmp_path / "blobs", limits=limits) as disk:
            yield disk.write_back


async def put(store: BlobStore, data: bytes) -> Digest:
    digest = Digest.of(data)
    await store.write("ann", digest, pieces_of(data))
    return digest


def modes(root: Path) -> list[int]:
    return sorted(path.stat().st_mode & 0o777 for path in (root / "blobs").rglob("*") if path.is_file())


async def until_modes_are(root: Path, *wanted: int) -> None:
    async with asyncio.timeout(30):
        while modes(root) != list(wanted):  # noqa: ASYNC110 (another thread; nothing to wait on)
            await asyncio.sleep(0.01)


def machine_restarted(root: Path) -> None:
    """As if it had: the store was opened by a machine that started another time."""
    (root / "boot").write_text("another start\n")


@pytest.mark.parametrize("size_bytes", [1000, 3 * MIB])
async def test_what_is_written_back_is_not_synced_and_settles_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    def never(_descriptor: int) -> None:
        raise AssertionError("synced")

    async with DiskBlobs(tmp_path, settle_s=LATER_S) as disk:
        with monkeypatch.context() as watched:
            watched.setattr(os, "fsync", never)
            digest = await put(disk.write_back, content_of(size_bytes))
            assert await read_all(disk.write_back, "ann", digest) == content_of(size_bytes)
        assert modes(tmp_path) == [WRITTEN]

    async with DiskBlobs(tmp_path, settle_s=0.01) as disk:
        await disk.clean(now_s=0)  # finds what the other left
        await until_modes_are(tmp_path, SETTLED)


async def test_after_a_restart_of_the_machine_what_was_only_written_is_gone(tmp_path: Path) -> None:
    async with DiskBlobs(tmp_path, settle_s=LATER_S) as disk:
        synced, written, through = content_of(1000), content_of(2000, seed=1), content_of(3000, seed=2)
        kept = [await put(disk.write_back, synced), await put(disk, through)]
        (tmp_path / "blobs" / "ann" / kept[0].hash[:2] / f"b3-{kept[0].hash}-1000").chmod(SYNCED)
        lost = await put(disk.write_back, written)
    machine_restarted(tmp_path)

    async with DiskBlobs(tmp_path) as disk:
        assert await disk.find_missing("ann", [lost, *kept]) == frozenset([lost])
        assert await disk.usage("ann") == StoreUsage(blobs=2, total_bytes=4000)


async def test_what_was_written_survives_another_start_of_the_process(tmp_path: Path) -> None:
    async with DiskBlobs(tmp_path, settle_s=LATER_S) as disk:
        digest = await put(disk.write_back, content_of(1000))

    async with DiskBlobs(tmp_path) as disk:
        assert await disk.write_back.find_missing("ann", [digest]) == frozenset()


@pytest.mark.parametrize("how", ["asked for", "written again", "written again below tiers"])
async def test_who_needs_durable_content_gets_it_although_it_was_written_back(tmp_path: Path, how: str) -> None:
    data = content_of(1000)
    async with DiskBlobs(tmp_path, settle_s=LATER_S) as disk:
        digest = await put(disk.write_back, data)

        match how:
            case "asked for":
                assert await disk.find_missing("ann", [digest]) == frozenset()
            case "written again":
                await put(disk, data)
            case _:
                disk_tier = Tier(name="disk", store=disk, deadline_s=20.0, write_back=disk.write_back)
                tiers = TieredBlobs([disk_tier, Tier(name="memory", store=MemoryBlobs(), deadline_s=20.0)])
                await put(tiers.write_back, data)
                assert modes(tmp_path) == [WRITTEN]
                await put(tiers, data)

        assert modes(tmp_path) == [SETTLED]
    machine_restarted(tmp_path)
    async with DiskBlobs(tmp_path) as disk:
        assert await read_all(disk, "ann", digest) == data


async def test_a_file_that_took_the_place_of_another_is_not_taken_for_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from corral.blobs.adapters import disk_settling  # noqa: PLC0415 - what is replaced below

    data = content_of(1000)
    async with DiskBlobs(tmp_path, settle_s=LATER_S) as disk:
        digest = await put(disk.write_back, data)
        path = next(path for path in (tmp_path / "blobs").rglob("*") if path.is_file())

        def replaced_meanwhile(_folder: Path) -> None:
            fresh = path.with_name("fresh")
            fresh.write_bytes(data)
            fresh.chmod(WRITTEN)
            fresh.replace(path)

        with monkeypatch.context() as patched:
            patched.setattr(disk_settling, "_sync_file_system", replaced_meanwhile)
            disk._settling.turn()

        assert modes(tmp_path) == [WRITTEN]
        disk._settling.add([str(path)])
        disk._settling.turn()
        assert modes(tmp_path) == [SYNCED]
        disk._settling.turn()
        assert modes(tmp_path) == [SETTLED]
        assert await read_all(disk, "ann", digest) == data
