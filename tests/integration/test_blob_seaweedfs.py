"""The object-store adapter against a real S3 server: SeaweedFS on loopback."""

import asyncio
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest

from corral.blobs.adapters.disk import DiskBlobs
from corral.blobs.adapters.object_store import ObjectStoreBlobs, connect
from corral.blobs.adapters.tiered import Tier, TieredBlobs
from corral.blobs.content import pieces_of
from corral.blobs.model import StoreLimits
from corral.blobs.ports import BlobStore
from corral.kernel.digest import Digest
from corral.kernel.errors import BlobCorrupt, InvalidSpec, StoreUnavailable
from corral.testing.blob_contract import BLOB_LIMIT_BYTES, MIB, BlobStoreContract, Stalling, content_of, read_all
from corral.testing.seaweedfs import running_seaweedfs

_prefixes = count()


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a running server with an empty bucket ``corral``."""
    folder = tmp_path_factory.mktemp("weed")
    with running_seaweedfs(folder) as url:
        yield url
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def objects(s3_url: str) -> ObjectStoreBlobs:
    return _open(s3_url, f"test-{next(_prefixes)}")


class TestObjectStoreOnSeaweedFS(BlobStoreContract):
    enforces_quota = False

    @pytest.fixture
    def store(self, objects: ObjectStoreBlobs) -> BlobStore:
        return objects

    @pytest.fixture
    def bounded_store(self, s3_url: str) -> BlobStore:
        return _open(s3_url, f"test-{next(_prefixes)}", limits=StoreLimits(blob_bytes=BLOB_LIMIT_BYTES))


async def test_a_refused_and_a_cancelled_upload_leave_no_parts_behind(s3_url: str, objects: ObjectStoreBlobs) -> None:
    data = content_of(20 * MIB)
    slow = Stalling(data)

    with pytest.raises(InvalidSpec):
        await objects.write("ann", Digest.of(data), pieces_of(content_of(20 * MIB, seed=1)))
    async with asyncio.timeout(60), asyncio.TaskGroup() as writers:
        writing = writers.create_task(objects.write("ann", Digest.of(data), slow))
        await slow.reached.wait()
        writing.cancel()

    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{s3_url}/corral?uploads")
    assert answer.status_code == 200
    assert "<Upload>" not in answer.text


async def test_an_object_that_was_changed_is_corrupt_and_removed(s3_url: str) -> None:
    store = _open(s3_url, "changed")
    data = content_of(100_000)
    digest = Digest.of(data)
    await store.write("ann", digest, pieces_of(data))
    key = f"changed/ann/{digest.hash[:2]}/b3-{digest.hash}-{digest.size_bytes}"
    async with httpx.AsyncClient() as client:
        (await client.put(f"{s3_url}/corral/{key}", content=content_of(100_000, seed=1))).raise_for_status()

    with pytest.raises(BlobCorrupt):
        await read_all(store, "ann", digest)

    assert await store.find_missing("ann", [digest]) == frozenset([digest])


async def test_a_bucket_that_does_not_exist_is_an_unavailable_store(s3_url: str) -> None:
    store = _open(s3_url, "x", bucket="no-such-bucket-because-names-end-in-a-dot.")
    data = content_of(10)

    with pytest.raises((StoreUnavailable, InvalidSpec)):
        await store.write("ann", Digest.of(data), pieces_of(data))


async def test_a_lost_disk_is_filled_again_from_the_object_store(tmp_path: Path, objects: ObjectStoreBlobs) -> None:
    data = content_of(9 * MIB)
    digest = Digest.of(data)
    async with DiskBlobs(tmp_path / "first") as disk:
        await _tiers(disk, objects).write("ann", digest, pieces_of(data))

    async with DiskBlobs(tmp_path / "second") as disk:
        assert await read_all(_tiers(disk, objects), "ann", digest) == data
        assert await read_all(disk, "ann", digest) == data


def _tiers(disk: DiskBlobs, objects: ObjectStoreBlobs) -> TieredBlobs:
    return TieredBlobs(
        [Tier(name="disk", store=disk, deadline_s=30.0), Tier(name="s3", store=objects, deadline_s=30.0)]
    )


def _open(s3_url: str, prefix: str, *, limits: StoreLimits | None = None, bucket: str = "corral") -> ObjectStoreBlobs:
    options = {"endpoint": s3_url, "access_key_id": "any", "secret_access_key": "any", "region": "us-east-1"}
    return ObjectStoreBlobs(
        connect(f"s3://{bucket}/", options=options, deadline_s=30.0), prefix=prefix, limits=limits, deadline_s=30.0
    )
