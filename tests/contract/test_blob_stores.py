"""Every blob store that needs no server passes the contract."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.adapters.object_store import ObjectStoreBlobs, connect
from corral.blobs.adapters.tiered import Tier, TieredBlobs
from corral.blobs.model import StoreLimits
from corral.blobs.ports import BlobStore
from corral.testing.blob_contract import BLOB_LIMIT_BYTES, TENANT_QUOTA_BYTES, BlobStoreContract

BOUNDS = StoreLimits(blob_bytes=BLOB_LIMIT_BYTES, tenant_bytes=TENANT_QUOTA_BYTES)


class TestMemoryBlobs(BlobStoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        yield MemoryBlobs()

    @pytest.fixture
    async def bounded_store(self) -> AsyncIterator[BlobStore]:
        yield MemoryBlobs(limits=BOUNDS)


class TestDiskBlobs(BlobStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        async with DiskBlobs(tmp_path / "blobs") as store:
            yield store

    @pytest.fixture
    async def bounded_store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        async with DiskBlobs(tmp_path / "blobs", limits=BOUNDS) as store:
            yield store


class TestObjectStoreInMemory(BlobStoreContract):
    enforces_quota = False

    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        yield ObjectStoreBlobs(connect("memory:///", options={}, deadline_s=30.0))

    @pytest.fixture
    async def bounded_store(self) -> AsyncIterator[BlobStore]:
        yield ObjectStoreBlobs(connect("memory:///", options={}, deadline_s=30.0), limits=BOUNDS)


class TestObjectStoreInAFolder(BlobStoreContract):
    enforces_quota = False

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield ObjectStoreBlobs(connect(f"file://{tmp_path}/objects", options={}, deadline_s=30.0), prefix="corral/")

    @pytest.fixture
    async def bounded_store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield ObjectStoreBlobs(connect(f"file://{tmp_path}/objects", options={}, deadline_s=30.0), limits=BOUNDS)


class TestTieredBlobs(BlobStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        async with DiskBlobs(tmp_path / "blobs") as disk:
            objects = ObjectStoreBlobs(connect(f"file://{tmp_path}/objects", options={}, deadline_s=30.0))
            yield TieredBlobs([_tier("disk", disk), _tier("objects", objects)])

    @pytest.fixture
    async def bounded_store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        async with DiskBlobs(tmp_path / "blobs", limits=BOUNDS) as disk:
            yield TieredBlobs([_tier("disk", disk), _tier("memory", MemoryBlobs(limits=BOUNDS))])


def _tier(name: str, store: BlobStore) -> Tier:
    return Tier(name=name, store=store, deadline_s=20.0)
