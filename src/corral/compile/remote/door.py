"""The client's side of a worker's door: a pinned connection for each worker, and the calls that a compile makes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from corral.compile.remote.model import Shipment, WorkerRoute
from corral.kernel.concurrency import raise_if_cancelled
from corral.kernel.digest import Digest
from corral.kernel.errors import CorralError, DependencyError, InvalidSpec, WorkerLost
from corral.wire.errors import error_of_rpc
from corral.wire.sessions import session_metadata
from corral.wire.transport import ClientTls, WireLimits, open_channel
from corral.wire.v1 import door_pb2
from corral.wire.v1.door_pb2_grpc import DoorStub

_PIECE: Final = 256 * 1024
_LIMITS: Final = WireLimits(message_bytes_max=64 * 1024**2)
_CONNECT_S: Final = 15.0
_CALL_S: Final = 60.0


class Doors:
    """Open connections, by address *and* certificate: a worker that came back with another one is dialed anew.

    ``start`` runs a coroutine beside.
    """

    def __init__(self, start: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._start = start
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._turns: dict[tuple[str, str], asyncio.Lock] = {}

    async def open(self, route: WorkerRoute, *, tenant: str, image: str, answer_s: float) -> "Door":
        """Raises WorkerLost when it does not answer, or shows another certificate. Cancellation: safe."""
        key = (route.address, route.certificate_fingerprint)
        async with self._turns.setdefault(key, asyncio.Lock()):
            if key not in self._channels:
                try:
                    async with asyncio.timeout(_CONNECT_S):
                        self._channels[key] = await open_channel(
                            route.address, ClientTls(fingerprint=route.certificate_fingerprint), _LIMITS
                        )
                except (CorralError, TimeoutError) as error:
                    raise WorkerLost(f"worker {route.worker_id} at {route.address}: {error}") from error
        return Door(DoorStub(self._channels[key]), route, tenant, image, answer_s)

    def forget(self, route: WorkerRoute) -> None:
        """Its connection failed; the next one is new. Calls that go on over the old one may end."""
        channel = self._channels.pop((route.address, route.certificate_fingerprint), None)
        if channel is not None:
            self._start(channel.close(_CALL_S))

    async def close(self) -> None:
        """Close all. Idempotent."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close(None)


class Door:
    """The calls of one compile on one worker. Every failure of the connection is WorkerLost."""

    def __init__(self, stub: DoorStub, route: WorkerRoute, tenant: str, image: str, answer_s: float) -> None:
        self._stub = stub
        self._route = route
        self._metadata = session_metadata(route.token)
        self._tenant = tenant
        self._image = image
        self._answer_s = answer_s
        self.uploaded_bytes = 0
        self.uploaded_blobs = 0

    async def execute(
        self, shipment: Shipment, *, inline_bytes: int, along: Sequence[bytes] = (), ask_cache: bool = True
    ) -> "door_pb2.ExecuteResponse":
        """Ask for the result, and send what is missing; a second lack is a failure.

        ``along`` are contents that the worker can hardly have.
        """
        request = door_pb2.ExecuteRequest(
            action=str(shipment.action),
            image=self._image,
            tenant=self._tenant,
            blobs=(*shipment.messages, *along),
            inline_bytes=inline_bytes,
            skip_cache=not ask_cache,
        )
        self.uploaded_blobs += len(along)
        self.uploaded_bytes += sum(map(len, along))
        if shipment.compiler:
            request.toolchain.compiler = shipment.compiler
            request.toolchain.identity = shipment.identity
            request.toolchain.paths.extend(path for path, _ in shipment.tool_files)
            request.toolchain.hashes.extend(content_hash for _, content_hash in shipment.tool_files)
        for _ in range(2):
            answer = await self._call(self._stub.Execute, request, self._answer_s)
            if not answer.missing:
                return answer
            await self.upload(shipment, [Digest.parse(each) for each in answer.missing])
            del request.blobs[:]
            request.skip_cache = True  # it was asked a moment ago
        raise DependencyError(f"worker {self._route.worker_id} does not keep what it is sent")

    async def upload(self, shipment: Shipment, missing: Iterable[Digest]) -> None:
        """Send blobs. Raises InvalidSpec when one is not what its digest says: it changed meanwhile."""
        wanted = list(missing)
        call: Any = self._stub.Upload(metadata=self._metadata, timeout=self._answer_s)  # type: ignore[call-arg]
        try:
            for digest in wanted:
                async for message in self._messages(shipment, digest):
                    await call.write(message)
            await call.done_writing()
            answer = await call
        except grpc.aio.AioRpcError as failure:
            raise self._meaning(failure) from failure
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as failure:
            raise WorkerLost(f"worker {self._route.worker_id} went away during an upload") from failure
        finally:
            call.cancel()
        self.uploaded_blobs += answer.blobs
        self.uploaded_bytes += answer.bytes
        if answer.rejected:
            raise InvalidSpec(f"a file changed while it was sent: {answer.rejected[0]}")

    async def blob(self, answer: "door_pb2.ExecuteResponse", digest: Digest) -> bytes:
        """An output: from the answer, else fetched. Raises DependencyError when its bytes are others."""
        data = answer.outputs.get(str(digest))
        if data is None:
            request = door_pb2.FetchRequest(digest=str(digest), image=self._image, tenant=self._tenant)
            call: Any = self._stub.Fetch(request, metadata=self._metadata, timeout=_CALL_S)
            try:
                pieces = [piece.data async for piece in call]
            except grpc.aio.AioRpcError as failure:
                raise self._meaning(failure) from failure
            data = b"".join(pieces)
        if Digest.of(data, digest.function) != digest:
            raise DependencyError(f"worker {self._route.worker_id} sent other bytes than its result names")
        return data

    async def _messages(self, shipment: Shipment, digest: Digest) -> AsyncIterator["door_pb2.UploadRequest"]:
        content = shipment.contents.get(digest)
        if content is None:
            path = shipment.files.get(digest)
            if path is None:
                raise InvalidSpec(f"the worker asks for {digest}, which is no part of this compile")
            try:
                small = digest.size_bytes <= _PIECE
                content = Path(path).read_bytes() if small else await asyncio.to_thread(Path(path).read_bytes)  # noqa: ASYNC240
            except OSError as error:
                raise InvalidSpec(f"{path}: {error.strerror}") from error
        first = content[:_PIECE]
        yield door_pb2.UploadRequest(
            digest=str(digest), tenant=self._tenant, image=self._image, data=first, end=len(content) <= _PIECE
        )
        for at in range(_PIECE, len(content), _PIECE):
            yield door_pb2.UploadRequest(data=content[at : at + _PIECE], end=at + _PIECE >= len(content))

    async def _call(self, method: Any, request: Any, within_s: float) -> "door_pb2.ExecuteResponse":
        try:
            answer: door_pb2.ExecuteResponse = await method(request, metadata=self._metadata, timeout=within_s)
        except grpc.aio.AioRpcError as failure:
            raise self._meaning(failure) from failure
        except asyncio.CancelledError:
            raise_if_cancelled()
            raise WorkerLost(f"the connection to worker {self._route.worker_id} was given up") from None
        return answer

    def _meaning(self, failure: grpc.aio.AioRpcError) -> CorralError:
        error = error_of_rpc(failure)
        if failure.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
        ):
            if error.code == "scheduler-unavailable":
                return WorkerLost(f"worker {self._route.worker_id} does not answer: {failure.details()}")
        return error
