"""ContentAddressableStorage: which blobs are missing, and blobs and trees in batches."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

from corral.actions.adapters.messages import digest_from, digest_to
from corral.blobs.content import pieces_of, read_bytes
from corral.blobs.ports import BlobStore
from corral.doors.reapi.chunks import splice, split
from corral.doors.reapi.entrance import READ_BLOBS, WRITE_BLOBS, Entrance
from corral.doors.reapi.failures import no_blob, status_message
from corral.doors.reapi.names import digests_of, function_of, is_empty
from corral.doors.reapi.questions import Question
from corral.doors.reapi.services import Services
from corral.doors.reapi.trees import pages
from corral.kernel.digest import Digest
from corral.kernel.errors import CorralError, InvalidSpec, NotFound
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi import remote_execution_pb2_grpc as reapi_grpc
from corral.wire.server import Context

_AT_ONCE: Final = 64  # as many small blobs as the disk store syncs in one go


class CasServicer(reapi_grpc.ContentAddressableStorageServicer):
    """The tenant's blobs. The empty blob is always there, for readers and in answers."""

    def __init__(self, entrance: Entrance, services: Services) -> None:
        self._entrance = entrance
        self._blobs: BlobStore = services.blobs
        self._config = services.config

    async def FindMissingBlobs(self, request: bytes, context: Context) -> bytes:  # type: ignore[override]  # as bytes
        question = Question.read(request)
        tenant = self._entrance.tenant(context, question.instance, READ_BLOBS)
        function = function_of(question.function)
        self._check_count(len(question.encoded), "blob_digests")
        asked = question.digests(function)
        stored = [digest for digest in asked if digest.size_bytes or not is_empty(digest)]
        return question.answer(asked, await self._blobs.find_missing(tenant, stored))

    async def BatchUpdateBlobs(
        self, request: reapi.BatchUpdateBlobsRequest, context: Context
    ) -> reapi.BatchUpdateBlobsResponse:
        tenant = self._entrance.tenant(context, request.instance_name, WRITE_BLOBS)
        function = function_of(request.digest_function)
        self._check_count(len(request.requests), "requests")
        digests = digests_of([one.digest for one in request.requests], function, "requests.digest")
        self._check_batch(
            max(len(one.data), digest.size_bytes) for one, digest in zip(request.requests, digests, strict=True)
        )
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def store(
            one: reapi.BatchUpdateBlobsRequest.Request, digest: Digest
        ) -> reapi.BatchUpdateBlobsResponse.Response:
            response = reapi.BatchUpdateBlobsResponse.Response(digest=one.digest)
            async with at_once:
                try:
                    await self._blobs.write(tenant, digest, pieces_of(_plain(one, digest)))
                except CorralError as error:
                    response.status.CopyFrom(status_message(error))
                else:
                    response.status.SetInParent()
            return response

        async with asyncio.TaskGroup() as group:
            writing = [
                group.create_task(store(one, digest)) for one, digest in zip(request.requests, digests, strict=True)
            ]
        return reapi.BatchUpdateBlobsResponse(responses=[task.result() for task in writing])

    async def BatchReadBlobs(
        self, request: reapi.BatchReadBlobsRequest, context: Context
    ) -> reapi.BatchReadBlobsResponse:
        tenant = self._entrance.tenant(context, request.instance_name, READ_BLOBS)
        function = function_of(request.digest_function)
        self._check_count(len(request.digests), "digests")
        digests = digests_of(request.digests, function, "digests")
        self._check_batch(digest.size_bytes for digest in digests)
        zstd = reapi.Compressor.ZSTD in request.acceptable_compressors
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def read(digest: Digest) -> reapi.BatchReadBlobsResponse.Response:
            response = reapi.BatchReadBlobsResponse.Response(digest=digest_to(digest))
            async with at_once:
                try:
                    data = await self._read(tenant, digest)
                except CorralError as error:
                    response.status.CopyFrom(status_message(error))
                    return response
            response.status.SetInParent()
            if zstd:
                # Imported by who needs it: most clients compress nothing, and idle memory counts.
                from corral.doors.reapi.compression import compress  # noqa: PLC0415

                data, response.compressor = compress(data), reapi.Compressor.ZSTD
            response.data = data
            return response

        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(read(digest)) for digest in digests]
        return reapi.BatchReadBlobsResponse(responses=[task.result() for task in reading])

    async def GetTree(self, request: reapi.GetTreeRequest, context: Context) -> AsyncIterator[reapi.GetTreeResponse]:
        tenant = self._entrance.tenant(context, request.instance_name, READ_BLOBS)
        root = digest_from(request.root_digest, function_of(request.digest_function), "root_digest")
        async for page in pages(
            self._blobs,
            tenant,
            root,
            page_size=request.page_size,
            page_token=request.page_token,
            page_bytes=self._config.tree_page_bytes,
            directories_max=self._config.tree_directories,
        ):
            yield page

    async def SplitBlob(self, request: reapi.SplitBlobRequest, context: Context) -> reapi.SplitBlobResponse:
        # The chunks are stored, so that every one can be read by itself: this reads and writes.
        tenant = self._entrance.tenant(context, request.instance_name, WRITE_BLOBS)
        blob = digest_from(request.blob_digest, function_of(request.digest_function), "blob_digest")
        if request.chunking_function not in (reapi.ChunkingFunction.UNKNOWN, reapi.ChunkingFunction.FAST_CDC_2020):
            raise InvalidSpec("chunking_function: only FAST_CDC_2020 is served", field="chunking_function")
        chunks = await split(self._blobs, tenant, blob, average_bytes=self._config.chunk_bytes)
        return reapi.SplitBlobResponse(
            chunk_digests=map(digest_to, chunks), chunking_function=reapi.ChunkingFunction.FAST_CDC_2020
        )

    async def SpliceBlob(self, request: reapi.SpliceBlobRequest, context: Context) -> reapi.SpliceBlobResponse:
        tenant = self._entrance.tenant(context, request.instance_name, WRITE_BLOBS)
        function = function_of(request.digest_function)
        self._check_count(len(request.chunk_digests), "chunk_digests")
        blob = digest_from(request.blob_digest, function, "blob_digest")
        chunks = digests_of(request.chunk_digests, function, "chunk_digests")
        await splice(self._blobs, tenant, blob, chunks)
        return reapi.SpliceBlobResponse(blob_digest=request.blob_digest)

    async def _read(self, tenant: str, digest: Digest) -> bytes:
        if is_empty(digest):
            return b""
        try:
            return await read_bytes(self._blobs, tenant, digest, bytes_max=self._config.batch_bytes)
        except NotFound:
            raise no_blob(digest) from None

    def _check_count(self, count: int, field: str) -> None:
        if count > self._config.batch_blobs:
            raise InvalidSpec(
                f"{field}: {count} digests; the most in one request is {self._config.batch_blobs}", field=field
            )

    def _check_batch(self, sizes: Iterable[int]) -> None:
        total_bytes = sum(sizes)
        if total_bytes > self._config.batch_bytes:
            raise InvalidSpec(
                f"the batch has {total_bytes} bytes; the most is {self._config.batch_bytes}: send less at once, "
                "or use streams",
                field="requests",
            )


def _plain(one: reapi.BatchUpdateBlobsRequest.Request, digest: Digest) -> bytes:
    """The content of one blob of a batch, uncompressed."""
    match one.compressor:
        case reapi.Compressor.IDENTITY:
            return one.data
        case reapi.Compressor.ZSTD:
            # Imported by who needs it: most clients compress nothing, and idle memory counts.
            from corral.doors.reapi.compression import decompress  # noqa: PLC0415

            return decompress(one.data, digest, field="requests.data")
        case _:
            raise InvalidSpec("requests.compressor: only IDENTITY and ZSTD are served", field="requests.compressor")
