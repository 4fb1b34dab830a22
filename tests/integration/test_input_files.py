"""Files of input roots on a worker's disk: fetched once each however many want them at once, in any mixture."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from corral.actions.errors import MissingBlobs
from corral.actions.input_files import InputFiles, Wanted
from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import write_bytes
from corral.kernel.digest import Digest
from corral.testing.blob_contract import MIB, content_of

EMPTY = Digest.of(b"")


class Watched(MemoryBlobs):
    """Counts reads, and how many there are at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.now = self.most = 0

    async def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        self.reads += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            async for piece in super().read(tenant, digest, offset=offset, length=length):
                await asyncio.sleep(0)
                yield piece
        finally:
            self.now -= 1


@pytest.fixture
def blobs() -> Watched:
    return Watched()


@pytest.fixture
def files(tmp_path: Path, blobs: Watched) -> InputFiles:
    opened = InputFiles(tmp_path / "files", blobs, total_bytes=64 * MIB, at_once=4)
    opened.open_empty()
    return opened


async def stored(blobs: Watched, count: int, *, first: int = 0) -> list[Wanted]:
    return [
        (await write_bytes(blobs, "ann", f"content {number}".encode()), number % 2 == 0)
        for number in range(first, first + count)
    ]


def digest_at(path: str, like: Digest) -> Digest:
    return Digest.of(Path(path).read_bytes(), like.function)


async def test_small_large_and_empty_files_arrive_with_their_modes(
    files: InputFiles, blobs: Watched, tmp_path: Path
) -> None:
    large = await write_bytes(blobs, "ann", content_of(3 * MIB))
    wanted = [*await stored(blobs, 100), (large, False), (large, True), (EMPTY, False)]

    await files.hold("ann", wanted)

    for digest, executable in wanted:
        assert digest_at(path := files.path("ann", (digest, executable)), digest) == digest
        assert os.access(path, os.X_OK) == executable
    assert os.listdir(tmp_path / "files") == ["ann"]  # nothing half written


async def test_those_who_want_some_of_the_same_files_at_once_fetch_each_once(files: InputFiles, blobs: Watched) -> None:
    wanted = await stored(blobs, 200)

    async with asyncio.TaskGroup() as group:
        for start in range(0, 160, 10):
            group.create_task(files.hold("ann", wanted[start : start + 40]))

    assert blobs.reads == files.fetched == 190


async def test_no_more_are_fetched_at_once_than_is_said(files: InputFiles, blobs: Watched) -> None:
    async with asyncio.TaskGroup() as group:
        for first in range(0, 500, 100):
            group.create_task(files.hold("ann", await stored(blobs, 100, first=first)))

    assert blobs.most == 4


async def test_a_blob_that_goes_away_while_others_come_is_told_and_costs_nobody_else_anything(
    files: InputFiles, blobs: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await stored(blobs, 50)
    gone = wanted[7][0]

    async def nothing_is_missing(*_: object) -> frozenset[Digest]:
        await blobs.delete("ann", [gone])
        return frozenset()

    with monkeypatch.context() as patched:
        patched.setattr(blobs, "find_missing", nothing_is_missing)
        with pytest.raises(MissingBlobs) as missing:
            await files.hold("ann", wanted)
    assert missing.value.digests == (gone,)

    await files.hold("ann", [each for each in wanted if each[0] != gone])
    assert not os.access(files.path("ann", wanted[7]), os.F_OK)
