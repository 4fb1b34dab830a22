"""ByteStream: blobs as streams, from any offset, resumable, plain or compressed with zstd."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing
from typing import Final

from corral.blobs.content import pieces_of
from corral.blobs.ports import BlobStore
from corral.doors.reapi.entrance import READ_BLOBS, WRITE_BLOBS, Entrance
from corral.doors.reapi.failures import OutOfRange, no_blob
from corral.doors.reapi.names import ResourceName, is_empty, parse_read_name, parse_write_name
from corral.doors.reapi.services import Services
from corral.doors.reapi.uploads import Upload, UploadKey, Uploads
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, NotFound
from corral.wire.reapi import bytestream_pb2 as bytestream
from corral.wire.reapi import bytestream_pb2_grpc as bytestream_grpc
from corral.wire.server import Context

_NEEDED_NO_MORE: Final = -1  # what the protocol answers to a compressed upload of content that is stored already


class ByteStreamServicer(bytestream_grpc.ByteStreamServicer):
    """Streams of the tenant's blobs; ``uploads`` keeps what was broken off."""

    def __init__(self, entrance: Entrance, services: Services, uploads: Uploads) -> None:
        self._entrance = entrance
        self._blobs: BlobStore = services.blobs
        self._uploads = uploads

    async def Read(self, request: bytestream.ReadRequest, context: Context) -> AsyncIterator[bytestream.ReadResponse]:
        name = parse_read_name(request.resource_name)
        tenant = self._entrance.tenant(context, name.instance, READ_BLOBS)
        _check_range(request, name)
        if is_empty(name.digest) and not name.zstd:
            return
        length = request.read_limit or None
        async with aclosing(self._content(tenant, name.digest, request.read_offset, length)) as content:
            async with aclosing(await _packed(content) if name.zstd else content) as pieces:
                async for piece in pieces:
                    yield bytestream.ReadResponse(data=piece)

    async def Write(
        self, request_iterator: AsyncIterator[bytestream.WriteRequest], context: Context
    ) -> bytestream.WriteResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise InvalidSpec("a write begins with a message that has a resource_name", field="resource_name")
        name = parse_write_name(first.resource_name)
        tenant = self._entrance.tenant(context, name.instance, WRITE_BLOBS)
        if is_empty(name.digest):
            return bytestream.WriteResponse(committed_size=0)
        key = UploadKey(tenant, f"{name.upload}/{name.zstd}", name.digest)
        await self._uploads.wait_alone(key)
        if _is_whole(first, name):  # as most are: there is nothing to resume, so nothing is kept open
            await self._blobs.write(tenant, name.digest, pieces_of(first.data))
            return bytestream.WriteResponse(committed_size=len(first.data))
        upload = self._upload(key, first)
        async with self._uploads.turn_of(upload) as turn:
            call = _Call(self._uploads, upload, turn, first)
            await (_inflate(call, request_iterator) if name.zstd else _copy(call, request_iterator))
        if call.finished or not upload.ended:
            # What a compressed upload has committed counts compressed bytes, from where this call began.
            return bytestream.WriteResponse(committed_size=call.offset)
        await upload.wait_stored()  # the store needed no more, or refused it
        return bytestream.WriteResponse(committed_size=_NEEDED_NO_MORE if name.zstd else name.digest.size_bytes)

    async def QueryWriteStatus(
        self, request: bytestream.QueryWriteStatusRequest, context: Context
    ) -> bytestream.QueryWriteStatusResponse:
        name = parse_write_name(request.resource_name)
        tenant = self._entrance.tenant(context, name.instance, WRITE_BLOBS)
        upload = self._uploads.find(UploadKey(tenant, f"{name.upload}/{name.zstd}", name.digest))
        if upload is not None:
            return bytestream.QueryWriteStatusResponse(committed_size=upload.received_bytes)
        if is_empty(name.digest) or not await self._blobs.find_missing(tenant, [name.digest]):
            return bytestream.QueryWriteStatusResponse(committed_size=name.digest.size_bytes, complete=True)
        # Nothing is known of it. Not NOT_FOUND: Bazel gives up on that, and begins anew on 0.
        return bytestream.QueryWriteStatusResponse(committed_size=0)

    def _upload(self, key: UploadKey, first: bytestream.WriteRequest) -> Upload:
        """The upload that this call goes on with, or a new one for a call that begins at 0."""
        if first.write_offset == 0:
            return self._uploads.begin(key)
        found = self._uploads.find(key)
        committed = 0 if found is None else found.received_bytes
        if found is None or first.write_offset != committed:
            raise InvalidSpec(
                f"write_offset: {first.write_offset}, but {committed} bytes are committed; ask QueryWriteStatus",
                field="write_offset",
            )
        return found

    async def _content(
        self, tenant: str, digest: Digest, offset: int, length: int | None
    ) -> AsyncGenerator[bytes, None]:
        if is_empty(digest):
            return
        try:
            async with aclosing(self._blobs.read(tenant, digest, offset=offset, length=length)) as pieces:
                async for piece in pieces:
                    yield piece
        except NotFound:
            raise no_blob(digest) from None


class _Call:
    """One call's part of an upload; checks every message before its data is taken."""

    def __init__(self, uploads: Uploads, upload: Upload, turn: int, first: bytestream.WriteRequest) -> None:
        self._uploads = uploads
        self._turn = turn
        self._name = first.resource_name
        self.upload = upload
        self.first = first
        self.offset = first.write_offset
        self.finished = False

    async def messages(self, later: AsyncIterable[bytestream.WriteRequest]) -> AsyncIterator[bytes]:
        """The data of this call, until it ends or the store needs no more. Raises InvalidSpec, Conflict."""
        yield self._taken(self.first)
        if self.first.finish_write:
            return
        async for message in later:
            if self.upload.ended:
                return
            yield self._taken(message)
            if message.finish_write:
                return

    def _taken(self, message: bytestream.WriteRequest) -> bytes:
        self._uploads.check_turn(self.upload, self._turn)
        if message.resource_name not in ("", self._name):
            raise InvalidSpec("resource_name: another one than the call began with", field="resource_name")
        if message.write_offset != self.offset:
            raise InvalidSpec(
                f"write_offset: {message.write_offset}, but the data before it ends at {self.offset}",
                field="write_offset",
            )
        self.offset += len(message.data)
        self.finished = message.finish_write
        return message.data


def _is_whole(first: bytestream.WriteRequest, name: ResourceName) -> bool:
    """The whole content, plain, in one message. A wrong length is left to whoever counts the others."""
    begins_and_ends = first.write_offset == 0 and first.finish_write
    return begins_and_ends and not name.zstd and len(first.data) == name.digest.size_bytes


async def _copy(call: _Call, later: AsyncIterable[bytestream.WriteRequest]) -> None:
    async for data in call.messages(later):
        await call.upload.feed(data)
    if call.finished:
        await call.upload.finish()


async def _inflate(call: _Call, later: AsyncIterable[bytestream.WriteRequest]) -> None:
    # Imported by who needs it: most clients compress nothing, and idle memory counts.
    from corral.doors.reapi.compression import Inflating  # noqa: PLC0415

    inflating = Inflating(call.upload.key.digest.size_bytes - call.upload.received_bytes)
    async for data in call.messages(later):
        for piece in inflating.feed(data):
            await call.upload.feed(piece)
    if call.finished:
        inflating.end()
        await call.upload.finish()


async def _packed(content: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    # Imported by who needs it: most clients compress nothing, and idle memory counts.
    from corral.doors.reapi.compression import compressed  # noqa: PLC0415

    return compressed(content)


def _check_range(request: bytestream.ReadRequest, name: ResourceName) -> None:
    if request.read_limit < 0:
        raise InvalidSpec(f"read_limit: {request.read_limit} must not be negative", field="read_limit")
    if name.zstd and request.read_limit:
        raise InvalidSpec("read_limit: a compressed stream cannot be limited", field="read_limit")
    if not 0 <= request.read_offset <= name.digest.size_bytes:
        raise OutOfRange(f"read_offset: {request.read_offset} is not within the {name.digest.size_bytes} bytes")
