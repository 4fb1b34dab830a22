"""Blobs over gRPC: the scheduler's store, for workers that share neither a disk nor an object store with it.

``BlobsServicer`` puts any ``BlobStore`` on the wire; ``SchedulerBlobs`` is the same port at the other end, so the one
contract suite runs against both. Bytes travel in pieces, with gRPC's flow control, in bounded memory.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Iterable
from contextlib import aclosing
from typing import Any, Final

import grpc

from corral.blobs.ports import BlobStore
from corral.fleet.adapters.grpc_link import LinkSession, SchedulerLink
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec, SchedulerUnavailable, StoreUnavailable, Unauthenticated
from corral.wire.errors import error_of_rpc
from corral.wire.server import Context
from corral.wire.sessions import session_token
from corral.wire.v1 import fleet_pb2, fleet_pb2_grpc
from corral.wire.v1.fleet_pb2_grpc import BlobsStub

_PIECE: Final = 256 * 1024
_DIGESTS_PER_CALL: Final = 10_000
_SEND: Final = ("corral-send", "1")

Admit = Callable[[str], object]
"""Raises Unauthenticated for a session token that is not known."""


class BlobsServicer(fleet_pb2_grpc.BlobsServicer):
    """FindMissing, Read, Write, Delete, for workers with a session. Workers are trusted with every tenant's blobs."""

    def __init__(self, blobs: BlobStore, admit: Admit) -> None:
        self._blobs = blobs
        self._admit = admit

    async def FindMissing(
        self, request: fleet_pb2.FindMissingRequest, context: Context
    ) -> fleet_pb2.FindMissingResponse:
        self._admit(session_token(context))
        wanted = [Digest.parse(text) for text in request.digests]
        missing = await self._blobs.find_missing(request.tenant, wanted)
        return fleet_pb2.FindMissingResponse(missing=[str(digest) for digest in missing])

    async def Read(self, request: fleet_pb2.ReadRequest, context: Context) -> AsyncIterator[fleet_pb2.ReadChunk]:
        self._admit(session_token(context))
        length = None if request.whole else request.length
        digest = Digest.parse(request.digest)
        async for piece in self._blobs.read(request.tenant, digest, offset=request.offset, length=length):
            for at in range(0, len(piece), _PIECE):
                yield fleet_pb2.ReadChunk(data=piece[at : at + _PIECE])

    async def Write(
        self, request_iterator: AsyncIterator[fleet_pb2.WriteChunk], context: Context
    ) -> fleet_pb2.WriteResponse:
        self._admit(session_token(context))
        first = await anext(request_iterator, None)
        if first is None:
            raise InvalidSpec("a write begins with a message that names tenant and digest")

        async def content() -> AsyncGenerator[bytes, None]:
            await context.send_initial_metadata((_SEND,))  # only now does the store want it
            async for chunk in request_iterator:
                yield chunk.data

        async with aclosing(content()) as pieces:
            await self._blobs.write(first.tenant, Digest.parse(first.digest), pieces)
        return fleet_pb2.WriteResponse()

    async def Delete(self, request: fleet_pb2.DeleteRequest, context: Context) -> fleet_pb2.DeleteResponse:
        self._admit(session_token(context))
        await self._blobs.delete(request.tenant, [Digest.parse(text) for text in request.digests])
        return fleet_pb2.DeleteResponse()


class SchedulerBlobs:
    """``BlobStore`` at the worker's end; the scheduler's store is what it is."""

    def __init__(self, link: SchedulerLink, *, answer_s: float = 60.0) -> None:
        self._link = link
        self._answer_s = answer_s

    async def find_missing(self, tenant: str, digests: Iterable[Digest]) -> frozenset[Digest]:
        """See ``BlobReader``."""
        wanted = [str(digest) for digest in digests]
        missing: set[Digest] = set()
        for at in range(0, len(wanted), _DIGESTS_PER_CALL):
            request = fleet_pb2.FindMissingRequest(tenant=tenant, digests=wanted[at : at + _DIGESTS_PER_CALL])
            session = await self._session()
            try:
                response = await BlobsStub(session.channel).FindMissing(
                    request, metadata=session.metadata, timeout=self._answer_s
                )
            except grpc.aio.AioRpcError as failure:
                raise self._meaning(session, failure) from failure
            missing |= {Digest.parse(text) for text in response.missing}
        return frozenset(missing)

    async def read(
        self, tenant: str, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See ``BlobReader``. A whole read is verified by the store that reads it."""
        if offset < 0 or (length is not None and length < 0):
            raise InvalidSpec(f"offset {offset} and length {length} must not be negative")
        request = fleet_pb2.ReadRequest(
            tenant=tenant, digest=str(digest), offset=offset, length=length or 0, whole=length is None
        )
        session = await self._session()
        call = BlobsStub(session.channel).Read(request, metadata=session.metadata)
        try:
            async for chunk in call:
                yield chunk.data
        except grpc.aio.AioRpcError as failure:
            raise self._meaning(session, failure) from failure
        finally:
            call.cancel()

    async def write(self, tenant: str, digest: Digest, content: AsyncIterable[bytes]) -> None:
        """See ``BlobWriter``. ``content`` is not touched before the store asks for it."""
        session = await self._session()
        call: Any = BlobsStub(session.channel).Write(metadata=session.metadata)  # type: ignore[call-arg]
        try:
            await call.write(fleet_pb2.WriteChunk(tenant=tenant, digest=str(digest)))
            if _SEND in tuple(await call.initial_metadata() or ()):
                await _send(call, content)
            await call
        except grpc.aio.AioRpcError as failure:
            raise self._meaning(session, failure) from failure
        finally:
            call.cancel()

    async def delete(self, tenant: str, digests: Collection[Digest]) -> None:
        """See ``BlobWriter``."""
        request = fleet_pb2.DeleteRequest(tenant=tenant, digests=[str(digest) for digest in digests])
        session = await self._session()
        try:
            await BlobsStub(session.channel).Delete(request, metadata=session.metadata, timeout=self._answer_s)
        except grpc.aio.AioRpcError as failure:
            raise self._meaning(session, failure) from failure

    async def _session(self) -> LinkSession:
        if not self._link.connected:
            raise StoreUnavailable(self._link.trouble or "the scheduler's blobs cannot be reached")
        return await self._link.wait_session()

    def _meaning(self, session: LinkSession, failure: grpc.aio.AioRpcError) -> Exception:
        error = error_of_rpc(failure)
        if isinstance(error, Unauthenticated):
            self._link.session_refused(session)
        if isinstance(error, (Unauthenticated, SchedulerUnavailable)):
            return StoreUnavailable(f"the scheduler's blobs cannot be reached: {error.message}")
        return error


async def _send(call: Any, content: AsyncIterable[bytes]) -> None:
    try:
        async for piece in content:
            for at in range(0, len(piece), _PIECE):
                await call.write(fleet_pb2.WriteChunk(data=piece[at : at + _PIECE]))
        await call.done_writing()
    except (grpc.aio.UsageError, asyncio.InvalidStateError):
        if not call.done():
            raise  # else the store has answered already, and the answer says what was wrong
