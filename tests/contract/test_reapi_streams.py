"""ByteStream, asked by a plain gRPC client: offsets, limits, broken uploads, compression."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable

import grpc
import pytest
import zstandard

from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import write_bytes
from corral.blobs.model import StoreLimits
from corral.doors.reapi.config import ReapiConfig
from corral.kernel.digest import Digest, HashFunction
from corral.testing.reapi_door import Door, open_door
from corral.wire.reapi import bytestream_pb2 as bytestream
from corral.wire.reapi.bytestream_pb2_grpc import ByteStreamStub

DATA = random.Random(7).randbytes(3_000_000)
TEXT = b"compress me please. " * 100_000
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
Code = grpc.StatusCode


def digest(data: bytes) -> Digest:
    return Digest.of(data, HashFunction.SHA256)


def read_name(data: bytes, kind: str = "blobs") -> str:
    return f"{kind}/{digest(data).hash}/{len(data)}"


def write_name(data: bytes, kind: str = "blobs", upload: str = UUID) -> str:
    return f"uploads/{upload}/{kind}/{digest(data).hash}/{len(data)}"


def messages(
    name: str, data: bytes, *, offset: int = 0, finish: bool = True, piece: int = 500_000
) -> Iterable[bytestream.WriteRequest]:
    cuts = list(range(0, len(data), piece)) or [0]
    for at in cuts:
        yield bytestream.WriteRequest(
            resource_name=name if at == 0 else "",
            write_offset=offset + at,
            data=data[at : at + piece],
            finish_write=finish and at == cuts[-1],
        )


async def write(door: Door, requests: Iterable[bytestream.WriteRequest]) -> int:
    async def stream() -> AsyncIterator[bytestream.WriteRequest]:
        for request in requests:
            yield request

    return (await ByteStreamStub(door.channel).Write(stream())).committed_size


async def read(door: Door, name: str, *, offset: int = 0, limit: int = 0) -> bytes:
    call = ByteStreamStub(door.channel).Read(
        bytestream.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
    )
    return b"".join([response.data async for response in call])


async def status(door: Door, name: str) -> tuple[int, bool]:
    answer = await ByteStreamStub(door.channel).QueryWriteStatus(bytestream.QueryWriteStatusRequest(resource_name=name))
    return answer.committed_size, answer.complete


async def until_status(door: Door, name: str, committed: int) -> None:
    async with asyncio.timeout(5):
        while (await status(door, name))[0] != committed:  # noqa: ASYNC110 - another process's state, so to say
            await asyncio.sleep(0.005)


async def test_a_stream_is_written_and_read_from_any_offset() -> None:
    async with open_door() as door:
        committed = await write(door, messages(write_name(DATA), DATA))

        assert committed == len(DATA)
        assert await read(door, read_name(DATA)) == DATA
        assert await read(door, read_name(DATA), offset=1_234_567, limit=10) == DATA[1_234_567:1_234_577]
        assert await read(door, read_name(DATA), offset=len(DATA)) == b""
        assert await status(door, write_name(DATA)) == (len(DATA), True)


async def test_a_blob_that_comes_in_one_message_is_stored_and_may_come_again() -> None:
    async with open_door() as door:
        committed = [await write(door, messages(write_name(TEXT), TEXT, piece=len(TEXT))) for _ in range(2)]

        assert committed == [len(TEXT)] * 2
        assert await read(door, read_name(TEXT)) == TEXT


async def test_the_empty_blob_can_be_written_and_read_without_ever_being_stored() -> None:
    async with open_door() as door:
        assert await read(door, read_name(b"")) == b""
        assert await write(door, messages(write_name(b""), b"")) == 0
        assert zstandard.decompress(await read(door, read_name(b"", "compressed-blobs/zstd"))) == b""


@pytest.mark.parametrize(
    ("name", "offset", "limit", "code"),
    [
        (read_name(DATA), len(DATA) + 1, 0, Code.OUT_OF_RANGE),
        (read_name(DATA), -1, 0, Code.OUT_OF_RANGE),
        (read_name(DATA), 0, -1, Code.INVALID_ARGUMENT),
        (read_name(DATA, "compressed-blobs/zstd"), 0, 1, Code.INVALID_ARGUMENT),
        (read_name(DATA, "compressed-blobs/deflate"), 0, 0, Code.INVALID_ARGUMENT),
        (read_name(b"nowhere"), 0, 0, Code.NOT_FOUND),
        ("nonsense", 0, 0, Code.INVALID_ARGUMENT),
    ],
)
async def test_a_read_that_cannot_be_is_told_apart(name: str, offset: int, limit: int, code: Code) -> None:
    async with open_door() as door:
        await write_bytes(door.blobs, "default", DATA, function=HashFunction.SHA256)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await read(door, name, offset=offset, limit=limit)

    assert refused.value.code() is code


async def test_an_upload_whose_connection_broke_goes_on_where_it_was() -> None:
    name = write_name(DATA)
    async with open_door() as door:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as doomed:
            call = ByteStreamStub(doomed).Write()  # type: ignore[call-arg]
            for request in messages(name, DATA[:1_000_000], finish=False):
                await call.write(request)
            await until_status(door, name, 1_000_000)
        committed, complete = await status(door, name)
        assert (committed, complete) == (1_000_000, False)

        total = await write(door, messages(name, DATA[committed:], offset=committed))

        assert total == len(DATA)
        assert await read(door, read_name(DATA)) == DATA


async def test_an_upload_that_ends_without_its_last_message_waits_for_the_rest() -> None:
    name = write_name(DATA)
    async with open_door() as door:
        assert await write(door, messages(name, DATA[:700_000], finish=False)) == 700_000
        assert await status(door, name) == (700_000, False)
        assert await write(door, messages(name, DATA[700_000:], offset=700_000)) == len(DATA)


async def test_an_upload_may_begin_anew() -> None:
    async with open_door() as door:
        await write(door, messages(write_name(DATA), b"wrong" * 1000, finish=False))

        assert await write(door, messages(write_name(DATA), DATA)) == len(DATA)


async def test_nothing_is_known_of_an_upload_that_never_came() -> None:
    async with open_door() as door:
        assert await status(door, write_name(DATA)) == (0, False)


async def test_a_broken_upload_does_not_hold_up_another_of_the_same_content() -> None:
    async with open_door() as door:
        await write(door, messages(write_name(DATA, upload="a"), DATA[:1_000_000], finish=False))

        async with asyncio.timeout(5):
            assert await write(door, messages(write_name(DATA, upload="b"), DATA)) == len(DATA)


async def test_many_who_upload_the_same_content_at_once_all_succeed() -> None:
    async with open_door() as door, asyncio.TaskGroup() as group:
        writing = [
            group.create_task(write(door, messages(write_name(DATA, upload=f"u{number}"), DATA))) for number in range(8)
        ]
        await asyncio.wait(writing)
        assert await read(door, read_name(DATA)) == DATA

    assert [task.result() for task in writing] == [len(DATA)] * 8


async def test_a_broken_upload_is_forgotten_after_the_idle_time() -> None:
    async with open_door(ReapiConfig(upload_idle_s=0.05)) as door:
        await write(door, messages(write_name(DATA), DATA[:1_000_000], finish=False))
        await until_status(door, write_name(DATA), 0)


async def test_uploads_beyond_the_limit_are_told_to_come_back() -> None:
    async with open_door(ReapiConfig(uploads=1)) as door:
        await write(door, messages(write_name(DATA), DATA[:1_000], finish=False))
        with pytest.raises(grpc.aio.AioRpcError, match=r"reapi\.uploads") as refused:
            await write(door, messages(write_name(TEXT), TEXT))

    assert refused.value.code() is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", ["blobs", "compressed-blobs/zstd"])
async def test_content_that_is_stored_already_is_not_read_again(kind: str) -> None:
    async with open_door() as door:
        await write_bytes(door.blobs, "default", TEXT, function=HashFunction.SHA256)
        data = zstandard.compress(TEXT) if "zstd" in kind else TEXT

        async def unfinished() -> AsyncIterator[bytestream.WriteRequest]:
            at = 0
            while True:  # ends only when the server answers
                yield bytestream.WriteRequest(
                    resource_name=write_name(TEXT, kind), write_offset=at, data=data[at : at + 10]
                )
                at += len(data[at : at + 10])

        async with asyncio.timeout(5):
            answer = await ByteStreamStub(door.channel).Write(unfinished())

    assert answer.committed_size == (len(TEXT) if kind == "blobs" else -1)


@pytest.mark.parametrize(
    ("requests", "code"),
    [
        ([], Code.INVALID_ARGUMENT),
        ([bytestream.WriteRequest(data=b"x", finish_write=True)], Code.INVALID_ARGUMENT),
        (list(messages(write_name(b"told"), b"sent")), Code.INVALID_ARGUMENT),
        (list(messages(write_name(b"told"), b"to")), Code.INVALID_ARGUMENT),
        (list(messages(write_name(b"told"), b"told more")), Code.INVALID_ARGUMENT),
        (list(messages(write_name(DATA), DATA + b"more")), Code.INVALID_ARGUMENT),
        (list(messages(write_name(b"told"), b"ld", offset=2)), Code.INVALID_ARGUMENT),
        (
            [
                bytestream.WriteRequest(resource_name=write_name(b"told"), data=b"to"),
                bytestream.WriteRequest(write_offset=3, data=b"ld", finish_write=True),
            ],
            Code.INVALID_ARGUMENT,
        ),
        (
            [
                bytestream.WriteRequest(resource_name=write_name(b"told"), data=b"to"),
                bytestream.WriteRequest(resource_name=write_name(b"other"), write_offset=2, data=b"ld"),
            ],
            Code.INVALID_ARGUMENT,
        ),
    ],
)
async def test_an_upload_that_is_not_what_it_says_is_refused_and_leaves_nothing(
    requests: list[bytestream.WriteRequest], code: Code
) -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await write(door, requests)

        assert refused.value.code() is code
        assert (await door.blobs.usage("default")).blobs == 0


async def test_a_full_quota_ends_an_upload_in_resource_exhausted() -> None:
    async with open_door(blobs=MemoryBlobs(limits=StoreLimits(tenant_bytes=1_000_000))) as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await write(door, messages(write_name(DATA), DATA))

    assert refused.value.code() is Code.RESOURCE_EXHAUSTED


async def test_a_compressed_stream_is_stored_plain_and_read_either_way() -> None:
    packed = zstandard.compress(TEXT)
    name = write_name(TEXT, "compressed-blobs/zstd")
    async with open_door() as door:
        committed = await write(door, messages(name, packed, piece=50))

        assert committed == len(packed)
        assert await read(door, read_name(TEXT)) == TEXT
        back = await read(door, read_name(TEXT, "compressed-blobs/zstd"), offset=7)
        assert len(back) < len(TEXT) / 100
        assert zstandard.ZstdDecompressor().decompressobj().decompress(back) == TEXT[7:]


async def test_a_compressed_upload_goes_on_at_the_plain_offset_with_a_new_frame() -> None:
    name = write_name(TEXT, "compressed-blobs/zstd")
    async with open_door() as door:
        await write(door, messages(name, zstandard.compress(TEXT[:1_000_000]), finish=False))
        committed, _ = await status(door, name)
        assert committed == 1_000_000

        await write(door, messages(name, zstandard.compress(TEXT[committed:]), offset=committed))

        assert await read(door, read_name(TEXT)) == TEXT


@pytest.mark.parametrize(
    "packed",
    [b"no zstd at all", zstandard.compress(b"0" * 50_000_000), zstandard.compress(TEXT)[:-10], zstandard.compress(b"")],
)
async def test_a_compressed_upload_that_is_junk_a_bomb_or_cut_off_is_refused(packed: bytes) -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await write(door, messages(write_name(TEXT, "compressed-blobs/zstd"), packed))

        assert refused.value.code() is Code.INVALID_ARGUMENT
        assert (await door.blobs.usage("default")).blobs == 0
