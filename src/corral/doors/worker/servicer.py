"""The door's calls: probe, find missing, upload, execute, fetch. Decides nothing about actions; runs them directly.

An execution holds one of the worker's places for clients; when all are taken the caller is told at once, and compiles
elsewhere. Whatever a client uploads is stored under the digest that its bytes have, or not at all.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

import structlog

from corral.actions.adapters.grpc_results import EndedExecution
from corral.actions.adapters.messages import blobs_of_result, read_result, write_result
from corral.actions.errors import MissingBlobs
from corral.actions.model import Performed, StoredResult
from corral.blobs.content import read_bytes, write_bytes
from corral.blobs.parallel import run_all
from corral.blobs.ports import BlobStore
from corral.doors.worker.config import WorkerDoorConfig
from corral.doors.worker.entrance import Entrance
from corral.doors.worker.places import Places
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.kernel.errors import CorralError, DependencyError, InvalidSpec, TooLarge
from corral.ledger.model import AuditRow
from corral.wire.server import Context
from corral.wire.v1 import door_pb2, door_pb2_grpc

_PIECE: Final = 256 * 1024
_DIGESTS_MAX: Final = 100_000
_AT_ONCE: Final = 16
"""Blobs of one call that are written at the same time: what comes together is one step on the disk."""
_UNTOLD_MAX: Final = 1000
_TOLD_TOGETHER: Final = 256
_TELL_EVERY_S: Final = 0.5
"""A worker that is busy tells what ran this often: one call for many rows. What is told later than it ran is lost when
the worker is killed in between, so it is not more."""
_log = structlog.get_logger("corral.door")


class Runner(Protocol):
    """Who runs an action (``actions.runner.ActionRunner``)."""

    async def run(
        self, tenant: str, digest: Digest, *, platform: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> Performed: ...


class Results(Protocol):
    """The action cache, and where audit rows go."""

    async def get(self, tenant: str, action: Digest) -> StoredResult | None: ...

    async def tell(self, ended: Sequence[EndedExecution]) -> None: ...


class Toolchains(Protocol):
    """Compilers of this worker's own root."""

    async def differing(self, compiler: str, identity: str, files: Sequence[tuple[str, str]]) -> str:
        """What of a client's tool chain is another one here; "" when all is the same."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorServices:
    """What the door stands on."""

    worker_id: str
    entrance: Entrance
    blobs: BlobStore
    runner: Runner
    results: Results
    toolchains: Toolchains
    sign: Callable[[bytes], bytes]
    clock: Clock
    config: WorkerDoorConfig
    places: Places
    new_id: Callable[[], str]


def signed_message(action: Digest | str, result: bytes) -> bytes:
    """What a signature is over: the action, and the result with every digest in it."""
    return f"corral result 1\n{action}\n".encode() + result


class DoorServicer(door_pb2_grpc.DoorServicer):
    """See the module."""

    def __init__(self, services: DoorServices) -> None:
        self._services = services
        self._untold: asyncio.Queue[EndedExecution] = asyncio.Queue(_UNTOLD_MAX)
        self._hurry = asyncio.Event()

    async def tell_forever(self) -> NoReturn:
        """Leave audit rows and results at the scheduler, until cancelled; who waits for an answer need not wait for
        that. The first is told at once, those that follow closely together. What the scheduler does not take is logged
        and lost: the next equal execution runs again.
        """
        while True:
            batch = [await self._untold.get()]
            while not self._untold.empty() and len(batch) < _TOLD_TOGETHER:
                batch.append(self._untold.get_nowait())
            try:
                await self._services.results.tell(batch)
            except CorralError as error:
                _log.warning("results-not-told", executions=len(batch), error=error.message)
            finally:
                for _ in batch:
                    self._untold.task_done()
            with suppress(TimeoutError):
                async with asyncio.timeout(_TELL_EVERY_S):
                    await self._hurry.wait()

    async def wait_told(self) -> None:
        """Everything that ran has been told, or was lost. Cancellation: safe."""
        self._hurry.set()
        try:
            await self._untold.join()
        finally:
            self._hurry.clear()

    async def Probe(self, request: door_pb2.ProbeRequest, context: Context) -> door_pb2.ExecuteResponse:
        await self._services.entrance.admit(context, tenant=request.tenant, image=request.image)
        return await self._cached(request.tenant, Digest.parse(request.action), request.inline_bytes)

    async def FindMissing(self, request: door_pb2.DoorMissingRequest, context: Context) -> door_pb2.DoorMissingResponse:
        await self._services.entrance.admit(context, tenant=request.tenant, image=request.image)
        if len(request.digests) > _DIGESTS_MAX:
            raise TooLarge(f"{len(request.digests)} digests in one call; at most {_DIGESTS_MAX}")
        wanted = [Digest.parse(text) for text in request.digests]
        missing = await self._services.blobs.find_missing(request.tenant, wanted)
        return door_pb2.DoorMissingResponse(missing=sorted(str(each) for each in missing))

    async def Upload(
        self, request_iterator: AsyncIterator[door_pb2.UploadRequest], context: Context
    ) -> door_pb2.UploadResponse:
        answer = door_pb2.UploadResponse()
        tenant = ""
        async for first in request_iterator:
            if not first.digest or (tenant and first.tenant != tenant):
                raise InvalidSpec("an upload begins with a message that names its digest; one tenant in one stream")
            if not tenant:
                await self._services.entrance.admit(context, tenant=first.tenant, image=first.image)
                tenant = first.tenant
            await self._take(tenant, first, request_iterator, answer)
        return answer

    async def _take(
        self,
        tenant: str,
        first: door_pb2.UploadRequest,
        rest: AsyncIterator[door_pb2.UploadRequest],
        answer: door_pb2.UploadResponse,
    ) -> None:
        """One blob of a stream. A blob that is refused is read to its end, so that the next one can follow."""
        digest = Digest.parse(first.digest)
        ended = first.end

        async def pieces() -> AsyncGenerator[bytes, None]:
            nonlocal ended
            yield first.data
            while not ended:
                message = await anext(rest, None)
                if message is None or message.digest:
                    raise InvalidSpec("the stream ended in the middle of a blob")
                ended = message.end
                yield message.data

        async with aclosing(pieces()) as content:
            if await self._stored(tenant, digest, content):
                answer.blobs += 1
                answer.bytes += digest.size_bytes
            else:
                answer.rejected.append(str(digest))
        while not ended:  # what a store had already, or refused, is not read by it
            message = await anext(rest, None)
            ended = message is None or message.end

    async def _stored(self, tenant: str, digest: Digest, content: AsyncGenerator[bytes, None]) -> bool:
        if digest.size_bytes > self._services.config.blob_bytes:
            return False
        try:
            await self._services.blobs.write(tenant, digest, content)
        except (InvalidSpec, TooLarge):
            return False
        return True

    async def Execute(self, request: door_pb2.ExecuteRequest, context: Context) -> door_pb2.ExecuteResponse:
        services = self._services
        await services.entrance.admit(context, tenant=request.tenant, image=request.image)
        action = Digest.parse(request.action)
        if not request.skip_cache:
            cached = await self._cached(request.tenant, action, request.inline_bytes)
            if cached.found:
                return cached
        await run_all((self._keep(request.tenant, blob) for blob in request.blobs), at_once=_AT_ONCE)
        chain = request.toolchain
        if request.HasField("toolchain"):
            files = list(zip(chain.paths, chain.hashes, strict=False))
            if differing := await services.toolchains.differing(chain.compiler, chain.identity, files):
                raise DependencyError(f"the worker has another tool chain: {differing}")
        with services.places.hold():
            try:
                async with asyncio.timeout(services.config.answer_within_s):
                    return await self._run(request.tenant, action, request.inline_bytes)
            except TimeoutError:
                within_s = services.config.answer_within_s
                raise DependencyError(
                    f"the execution took longer than {within_s:g} s (worker_door.answer_within_s)"
                ) from None

    async def _keep(self, tenant: str, blob: bytes) -> None:
        await write_bytes(self._services.blobs, tenant, blob)

    async def Fetch(self, request: door_pb2.FetchRequest, context: Context) -> AsyncIterator[door_pb2.FetchResponse]:
        await self._services.entrance.admit(context, tenant=request.tenant, image=request.image)
        async with aclosing(self._services.blobs.read(request.tenant, Digest.parse(request.digest))) as pieces:
            async for piece in pieces:
                for at in range(0, len(piece), _PIECE):
                    yield door_pb2.FetchResponse(data=piece[at : at + _PIECE])

    async def _cached(self, tenant: str, action: Digest, inline_bytes: int) -> door_pb2.ExecuteResponse:
        try:
            found = await self._services.results.get(tenant, action)
        except DependencyError:
            found = None  # a cache that does not answer is no reason not to run
        if found is None:
            return door_pb2.ExecuteResponse()
        return await self._answer(tenant, action, found.encoded, inline_bytes, cached=True, execution=found.execution)

    async def _run(self, tenant: str, action: Digest, inline_bytes: int) -> door_pb2.ExecuteResponse:
        services = self._services
        created_s = services.clock.now_s()
        try:
            performed = await services.runner.run(tenant, action)
        except MissingBlobs as error:
            return door_pb2.ExecuteResponse(missing=[str(each) for each in error.digests])
        encoded = write_result(performed.result)
        execution = services.new_id()
        cacheable = performed.succeeded and not performed.do_not_cache
        stored = StoredResult(encoded=encoded, named=performed.named, execution=execution) if cacheable else None
        row = _audit_row(execution, tenant, action, performed, created_s)
        await self._untold.put(EndedExecution(tenant, action, stored, row))
        return await self._answer(tenant, action, encoded, inline_bytes, execution=execution, message=performed.message)

    async def _answer(
        self,
        tenant: str,
        action: Digest,
        encoded: bytes,
        inline_bytes: int,
        *,
        execution: str,
        cached: bool = False,
        message: str = "",
    ) -> door_pb2.ExecuteResponse:
        result = read_result(encoded, action.function)
        answer = door_pb2.ExecuteResponse(
            found=True,
            result=encoded,
            cached=cached,
            worker=self._services.worker_id,
            signature=self._services.sign(signed_message(action, encoded)),
            message=message,
            duration_s=max(0.0, result.times.execution_completed_s - result.times.execution_start_s),
            execution=execution,
        )
        left = min(inline_bytes, self._services.config.inline_bytes)
        for digest in dict.fromkeys(blobs_of_result(result)):
            if digest.size_bytes <= left:
                left -= digest.size_bytes
                answer.outputs[str(digest)] = await read_bytes(
                    self._services.blobs, tenant, digest, bytes_max=digest.size_bytes
                )
        return answer


def _audit_row(execution: str, tenant: str, action: Digest, performed: Performed, created_s: float) -> AuditRow:
    usage, times = performed.usage, performed.result.times
    return AuditRow(
        task_id=execution,
        run=0,
        tenant=tenant,
        phase="completed" if performed.succeeded else "failed",
        resolved_s=times.worker_completed_s or created_s,
        created_s=created_s,
        started_s=times.execution_start_s or None,
        sandbox=performed.sandbox,
        runtime=performed.runtime,
        image=performed.image,
        argv=performed.argv,
        env_digest=performed.env_digest,
        inputs=(str(action),),
        artifacts=tuple((each.path, str(each.digest)) for each in performed.result.files),
        end=performed.ended.value,
        exit_status=performed.exit_status,
        signal=performed.signal,
        message=performed.message,
        warm=performed.warm,
        cold_reason=performed.cold_reason,
        acquire_s=performed.acquire_s,
        wall_s=usage.wall_s,
        cpu_user_s=usage.cpu_user_s,
        cpu_system_s=usage.cpu_system_s,
        memory_peak_bytes=usage.memory_peak_bytes,
    )
