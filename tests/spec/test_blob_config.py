"""The section [blobs], the store that it opens, the errors of a foreign library, and the cleaning loop."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import obstore.exceptions
import pytest

from corral.blobs.adapters.object_store import connect, store_error
from corral.blobs.config import BlobsConfig
from corral.blobs.content import pieces_of, write_bytes
from corral.blobs.machine import Resident, plan_eviction
from corral.blobs.model import CleanReport, StoreLimits, StoreUsage
from corral.blobs.service import keep_clean, open_store
from corral.kernel.clock import LoopClock
from corral.kernel.concurrency import Signal
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound, StoreUnavailable
from corral.testing.blob_contract import read_all


def parse(section: dict[str, Any]) -> BlobsConfig:
    return msgspec.convert(section, BlobsConfig)


async def test_tiers_are_opened_as_configured(tmp_path: Path) -> None:
    config = parse(
        {
            "tiers": [
                {"kind": "disk", "total_bytes": 1000},
                {"kind": "object-store", "url": f"file://{tmp_path}/objects"},
            ]
        }
    )

    async with open_store(config, data_dir=tmp_path) as opened:
        digest = await write_bytes(opened.store, "ann", b"content")

        assert await read_all(opened.store, "ann", digest) == b"content"
        assert [(state.name, state.ok) for state in opened.store.health()] == [("disk", True), ("object-store", True)]
        assert len(opened.janitors) == 1
    assert len(list((tmp_path / "blobs").rglob("b3-*"))) == 1
    assert len(list((tmp_path / "objects").rglob("b3-*"))) == 1


async def test_a_tenants_quota_reaches_the_disk(tmp_path: Path) -> None:
    async with open_store(BlobsConfig(), data_dir=tmp_path, quota_bytes=lambda _tenant: 3) as opened:
        digest = Digest.of(b"four")
        with pytest.raises(Exception, match="more do not fit"):
            await opened.store.write("ann", digest, pieces_of(b"four"))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"tiers": []}, "at least one"),
        ({"tiers": [{"kind": "disk"}, {"kind": "disk"}]}, "the name"),
        ({"tiers": [{"kind": "disk", "total_bytes": 0}]}, "total_bytes must be over 0"),
        ({"tiers": [{"kind": "disk", "age_s": 10}]}, "age_s must be over grace_s"),
        ({"tiers": [{"kind": "disk", "deadline_s": -1}]}, "deadline_s must be over 0"),
        ({"tiers": [{"kind": "tape"}]}, "tape"),
        ({"tiers": [{"kind": "disk", "colour": "red"}]}, "colour"),
        ({"tiers": [{"kind": "object-store", "url": "bucket"}]}, "is not a URL"),
        ({"tiers": [{"kind": "object-store"}]}, "url"),
        ({"blob_bytes": -1}, "blob_bytes must be over 0"),
    ],
)
def test_a_mistake_in_the_section_is_named(section: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        parse(section)


@pytest.mark.parametrize(
    ("url", "options"), [("gopher://x", {}), ("s3://bucket", {"no_such_option": "x"}), ("nothing", {})]
)
def test_an_object_store_that_cannot_be_is_refused(url: str, options: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec, match="object store"):
        connect(url, options=options, deadline_s=1.0)


def test_every_error_of_obstore_becomes_one_of_ours() -> None:
    kinds = [
        kind for kind in vars(obstore.exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    assert len(kinds) >= 10

    for kind in kinds:
        assert isinstance(store_error(kind("foreign"), "testing"), StoreUnavailable)
    assert isinstance(store_error(FileNotFoundError("foreign"), "testing"), NotFound)
    assert isinstance(store_error(TimeoutError(), "testing"), StoreUnavailable)
    assert "credentials" in store_error(obstore.exceptions.PermissionDeniedError("no"), "testing").cure


def test_carrying_out_an_eviction_plan_leaves_nothing_to_plan() -> None:
    residents = [Resident(float(used_s), 10, str(used_s)) for used_s in (5, 3, 9, 1, 7)]
    limits = StoreLimits(total_bytes=25, age_s=100.0)

    plan = plan_eviction(residents, held_bytes=50, limits=limits, grace_s=1.0, now_s=10.0)
    left = [resident for resident in residents if resident not in plan]

    assert [resident.place for resident in plan] == ["1", "3", "5"]
    assert plan_eviction(left, held_bytes=20, limits=limits, grace_s=1.0, now_s=10.0) == ()
    assert plan_eviction(residents, held_bytes=50, limits=limits, grace_s=9.0, now_s=10.0) == ()
    assert len(plan_eviction(residents, held_bytes=50, limits=limits, grace_s=1.0, now_s=1000.0)) == 5


@pytest.mark.looptime
async def test_cleaning_goes_on_after_a_failure_and_comes_at_once_when_woken() -> None:
    class Janitor:
        def __init__(self) -> None:
            self.times_s: list[float] = []

        async def clean(self, *, now_s: float) -> CleanReport:
            self.times_s.append(asyncio.get_running_loop().time())
            if len(self.times_s) == 1:
                raise StoreUnavailable("injected")
            return CleanReport(evicted_blobs=1, evicted_bytes=1, left=await self.usage())

        async def usage(self, tenant: str | None = None) -> StoreUsage:
            return StoreUsage(blobs=0, total_bytes=0)

    janitor, wake = Janitor(), Signal()
    start_s = asyncio.get_running_loop().time()

    async with asyncio.TaskGroup() as group:
        cleaning = group.create_task(keep_clean(janitor, LoopClock(), 100.0, wake=wake))
        await asyncio.sleep(150)
        wake.notify()
        await asyncio.sleep(1)
        cleaning.cancel()

    assert [round(at_s - start_s) for at_s in janitor.times_s] == [0, 100, 150]
