"""ContentAddressableStorage and Capabilities, asked by a plain gRPC client."""

import random

import grpc
import pytest
import zstandard

from corral.blobs.adapters.memory import MemoryBlobs
from corral.blobs.content import write_bytes
from corral.blobs.model import StoreLimits
from corral.doors.reapi.config import ReapiConfig
from corral.kernel.digest import Digest, HashFunction
from corral.testing.reapi_door import Door, open_door
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi.remote_execution_pb2_grpc import CapabilitiesStub, ContentAddressableStorageStub

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
MIB = 1024**2


def wire(data: bytes, function: HashFunction = HashFunction.SHA256) -> reapi.Digest:
    return reapi.Digest(hash=Digest.of(data, function).hash, size_bytes=len(data))


async def put(door: Door, data: bytes) -> reapi.Digest:
    await write_bytes(door.blobs, "default", data, function=HashFunction.SHA256)
    return wire(data)


def update(*contents: bytes) -> reapi.BatchUpdateBlobsRequest:
    return reapi.BatchUpdateBlobsRequest(
        requests=[reapi.BatchUpdateBlobsRequest.Request(digest=wire(data), data=data) for data in contents]
    )


async def test_capabilities_begin_low_enough_for_old_clients_and_tell_the_limits() -> None:
    async with open_door() as door:
        told = await CapabilitiesStub(door.channel).GetCapabilities(reapi.GetCapabilitiesRequest())

    assert (told.low_api_version.major, told.low_api_version.minor) == (2, 0)
    assert told.high_api_version.major == 2
    assert told.cache_capabilities.max_batch_total_size_bytes == ReapiConfig().batch_bytes
    assert list(told.cache_capabilities.digest_functions) == [reapi.DigestFunction.SHA256, reapi.DigestFunction.BLAKE3]
    assert told.execution_capabilities.exec_enabled
    assert told.execution_capabilities.digest_function == reapi.DigestFunction.SHA256
    assert reapi.Compressor.ZSTD in told.cache_capabilities.supported_compressors


async def test_an_action_cache_that_only_workers_fill_says_so() -> None:
    async with open_door(ReapiConfig(cache_update=False)) as door:
        told = await CapabilitiesStub(door.channel).GetCapabilities(reapi.GetCapabilitiesRequest())

    assert not told.cache_capabilities.action_cache_update_capabilities.update_enabled


async def test_missing_blobs_are_told_once_each_and_the_empty_one_never() -> None:
    async with open_door() as door:
        here = await put(door, b"here")
        asked = [here, wire(b"gone"), wire(b"gone"), wire(b"")]

        told = await ContentAddressableStorageStub(door.channel).FindMissingBlobs(
            reapi.FindMissingBlobsRequest(blob_digests=asked)
        )

    assert list(told.missing_blob_digests) == [wire(b"gone")]


async def test_a_blob_of_another_function_is_another_blob() -> None:
    async with open_door() as door:
        await put(door, b"here")

        told = await ContentAddressableStorageStub(door.channel).FindMissingBlobs(
            reapi.FindMissingBlobsRequest(
                blob_digests=[wire(b"here", HashFunction.BLAKE3)], digest_function=reapi.DigestFunction.BLAKE3
            )
        )

    assert len(told.missing_blob_digests) == 1


@pytest.mark.parametrize(
    "bad",
    [
        reapi.Digest(),
        reapi.Digest(hash="../../etc/passwd", size_bytes=5),
        reapi.Digest(hash="A" * 64, size_bytes=5),
        reapi.Digest(hash="a" * 64, size_bytes=-1),
    ],
)
async def test_what_is_no_digest_is_refused_and_the_field_is_named(bad: reapi.Digest) -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError, match="blob_digests") as refused:
            await ContentAddressableStorageStub(door.channel).FindMissingBlobs(
                reapi.FindMissingBlobsRequest(blob_digests=[bad])
            )

    assert refused.value.code() is INVALID


async def test_a_batch_is_stored_and_read_back_with_both_functions() -> None:
    for function, value in ((HashFunction.SHA256, 1), (HashFunction.BLAKE3, 9)):
        async with open_door() as door:
            cas = ContentAddressableStorageStub(door.channel)
            request = reapi.BatchUpdateBlobsRequest(digest_function=value)  # type: ignore[arg-type]
            request.requests.add(digest=wire(b"one", function), data=b"one")
            request.requests.add(digest=wire(b"", function))

            stored = await cas.BatchUpdateBlobs(request)
            read = await cas.BatchReadBlobs(
                reapi.BatchReadBlobsRequest(
                    digests=[wire(b"one", function), wire(b"", function)],
                    digest_function=value,  # type: ignore[arg-type]
                )
            )

        assert [each.status.code for each in stored.responses] == [0, 0]
        assert [(each.status.code, each.data) for each in read.responses] == [(0, b"one"), (0, b"")]


async def test_in_a_batch_every_blob_has_its_own_fate() -> None:
    async with open_door() as door:
        cas = ContentAddressableStorageStub(door.channel)
        request = update(b"good")
        request.requests.add(digest=wire(b"announced"), data=b"something")
        request.requests.add(digest=wire(b"longer than told"), data=b"short")

        stored = await cas.BatchUpdateBlobs(request)
        read = await cas.BatchReadBlobs(
            reapi.BatchReadBlobsRequest(digests=[wire(b"announced"), wire(b"good"), wire(b"longer than told")])
        )

    assert [each.status.code for each in stored.responses] == [0, INVALID.value[0], INVALID.value[0]]
    assert [each.status.code for each in read.responses] == [NOT_FOUND.value[0], 0, NOT_FOUND.value[0]]
    assert read.responses[1].data == b"good"


async def test_a_batch_beyond_the_limit_is_refused_as_a_whole() -> None:
    async with open_door(ReapiConfig(batch_bytes=1000)) as door:
        cas = ContentAddressableStorageStub(door.channel)
        await put(door, b"x" * 1001)
        with pytest.raises(grpc.aio.AioRpcError, match="the most is 1000") as written:
            await cas.BatchUpdateBlobs(update(b"a" * 600, b"b" * 401))
        with pytest.raises(grpc.aio.AioRpcError, match="the most is 1000") as read:
            await cas.BatchReadBlobs(reapi.BatchReadBlobsRequest(digests=[wire(b"x" * 1001)]))

        assert not (await cas.BatchUpdateBlobs(update(b"a" * 600, b"b" * 400))).responses[0].status.code

    assert written.value.code() is read.value.code() is INVALID


async def test_a_full_quota_is_resource_exhausted_for_the_blob_that_does_not_fit() -> None:
    async with open_door(blobs=MemoryBlobs(limits=StoreLimits(tenant_bytes=100))) as door:
        stored = await ContentAddressableStorageStub(door.channel).BatchUpdateBlobs(update(b"a" * 101, b"b" * 50))

    assert [each.status.code for each in stored.responses] == [grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], 0]


async def test_batches_travel_compressed_both_ways() -> None:
    data = b"compress me " * 1000
    async with open_door() as door:
        cas = ContentAddressableStorageStub(door.channel)
        request = reapi.BatchUpdateBlobsRequest()
        request.requests.add(digest=wire(data), data=zstandard.compress(data), compressor=reapi.Compressor.ZSTD)
        request.requests.add(
            digest=wire(b"bomb"), data=zstandard.compress(b"0" * MIB), compressor=reapi.Compressor.ZSTD
        )
        request.requests.add(digest=wire(b"junk"), data=b"junk", compressor=reapi.Compressor.ZSTD)
        request.requests.add(digest=wire(b"other"), data=b"other", compressor=reapi.Compressor.BROTLI)

        stored = await cas.BatchUpdateBlobs(request)
        read = await cas.BatchReadBlobs(
            reapi.BatchReadBlobsRequest(digests=[wire(data)], acceptable_compressors=[reapi.Compressor.ZSTD])
        )

    assert [each.status.code for each in stored.responses] == [0, *[INVALID.value[0]] * 3]
    assert read.responses[0].compressor == reapi.Compressor.ZSTD
    assert len(read.responses[0].data) < 200
    assert zstandard.decompress(read.responses[0].data) == data


def directory(*files: bytes, below: dict[str, reapi.Directory] | None = None) -> reapi.Directory:
    return reapi.Directory(
        files=[reapi.FileNode(name=f"f{number}", digest=wire(data)) for number, data in enumerate(files)],
        directories=[
            reapi.DirectoryNode(name=name, digest=wire(child.SerializeToString()))
            for name, child in sorted((below or {}).items())
        ],
    )


async def store_all(door: Door, *directories: reapi.Directory) -> None:
    for each in directories:
        await put(door, each.SerializeToString())


async def test_a_tree_comes_whole_each_directory_once() -> None:
    leaf = directory(b"leaf")
    middle = directory(b"middle", below={"x": leaf, "y": leaf})
    root = directory(b"root", below={"a": middle, "b": leaf})
    async with open_door() as door:
        await store_all(door, leaf, middle, root)

        pages = [
            page
            async for page in ContentAddressableStorageStub(door.channel).GetTree(
                reapi.GetTreeRequest(root_digest=wire(root.SerializeToString()))
            )
        ]

    assert [each for page in pages for each in page.directories] == [root, middle, leaf]
    assert pages[-1].next_page_token == ""


async def test_a_tree_goes_on_at_a_page_token() -> None:
    leaves = [directory(b"leaf %d" % number) for number in range(5)]
    root = directory(below={f"d{number}": leaf for number, leaf in enumerate(leaves)})
    async with open_door() as door:
        await store_all(door, root, *leaves)
        cas = ContentAddressableStorageStub(door.channel)
        request = reapi.GetTreeRequest(root_digest=wire(root.SerializeToString()), page_size=2)

        pages = [page async for page in cas.GetTree(request)]
        request.page_token = pages[0].next_page_token
        rest = [page async for page in cas.GetTree(request)]

    assert [len(page.directories) for page in pages] == [2, 2, 2]
    assert [each for page in rest for each in page.directories] == leaves[1:]


async def test_a_part_of_a_tree_that_is_missing_is_left_out_but_a_missing_root_is_not_found() -> None:
    gone, here = directory(b"gone"), directory(b"here")
    root = directory(below={"gone": gone, "here": here})
    async with open_door() as door:
        await store_all(door, root, here)
        cas = ContentAddressableStorageStub(door.channel)

        pages = [p async for p in cas.GetTree(reapi.GetTreeRequest(root_digest=wire(root.SerializeToString())))]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(cas.GetTree(reapi.GetTreeRequest(root_digest=wire(b"nowhere")))))

    assert [each for page in pages for each in page.directories] == [root, here]
    assert refused.value.code() is NOT_FOUND


async def test_bytes_that_are_no_directory_and_trees_without_end_are_refused() -> None:
    deep = [directory()]
    for _ in range(20):
        deep.append(directory(below={"d": deep[-1]}))
    async with open_door(ReapiConfig(tree_directories=10)) as door:
        await store_all(door, *deep)
        junk = await put(door, b"\xff\xff\xff")
        cas = ContentAddressableStorageStub(door.channel)
        for root in (junk, wire(deep[-1].SerializeToString())):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                _ = [page async for page in cas.GetTree(reapi.GetTreeRequest(root_digest=root))]
            assert refused.value.code() is INVALID


async def test_a_blob_is_split_where_its_content_says_and_spliced_again() -> None:
    data = random.Random(1).randbytes(400_000)
    async with open_door(ReapiConfig(chunk_bytes=16_384)) as door:
        cas = ContentAddressableStorageStub(door.channel)
        blob = await put(door, data)
        moved = await put(door, b"inserted at the front" + data)

        chunks = (await cas.SplitBlob(reapi.SplitBlobRequest(blob_digest=blob))).chunk_digests
        shared = (await cas.SplitBlob(reapi.SplitBlobRequest(blob_digest=moved))).chunk_digests
        await door.blobs.delete("default", [Digest.of(data, HashFunction.SHA256)])
        spliced = await cas.SpliceBlob(reapi.SpliceBlobRequest(blob_digest=blob, chunk_digests=chunks))
        missing = await cas.FindMissingBlobs(reapi.FindMissingBlobsRequest(blob_digests=[blob]))

    assert sum(chunk.size_bytes for chunk in chunks) == len(data)
    assert all(4096 <= chunk.size_bytes <= 65_536 for chunk in chunks[:-1])
    assert set(map(str, chunks[2:])) <= set(map(str, shared))
    assert spliced.blob_digest == blob
    assert not missing.missing_blob_digests


async def test_what_cannot_be_split_or_spliced_is_told_apart() -> None:
    async with open_door() as door:
        cas = ContentAddressableStorageStub(door.channel)
        one, two = await put(door, b"one"), await put(door, b"two")
        small = await cas.SplitBlob(reapi.SplitBlobRequest(blob_digest=one))

        codes = []
        for blob, chunks in (
            (wire(b"onetwo"), [one, wire(b"gone!")]),
            (wire(b"twoone"), [one, two]),
            (wire(b"onetwo"), [one, wire(b"xyz")]),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await cas.SpliceBlob(reapi.SpliceBlobRequest(blob_digest=blob, chunk_digests=chunks))
            codes.append(refused.value.code())
        with pytest.raises(grpc.aio.AioRpcError) as absent:
            await cas.SplitBlob(reapi.SplitBlobRequest(blob_digest=wire(b"gone")))

    assert list(small.chunk_digests) == [one]
    assert codes == [INVALID, INVALID, NOT_FOUND]
    assert absent.value.code() is NOT_FOUND
