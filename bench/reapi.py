"""The door for Bazel beside buildbox-casd: questions, batches, streams; and hits of the action cache beside a bare
grpc.aio server that answers the same messages from memory."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc
import psutil
import uvloop

from bench import casd_peer
from bench.report import Row, at_most, beside, p50
from corral.kernel.digest import Digest, HashFunction
from corral.testing.processes import CorralProcess, public_directory
from corral.wire.reapi import bytestream_pb2 as bytestream
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi.bytestream_pb2_grpc import ByteStreamStub
from corral.wire.reapi.remote_execution_pb2_grpc import ActionCacheStub, ContentAddressableStorageStub

_MIB = 1024**2
_STREAM = 16 * _MIB
_PIECE = _MIB
_QUESTIONS, _BATCHES, _STREAMS = 300, 60, 12
_HITS, _IN_FLIGHT = 4000, 16
_RSS_BOUND = 150 * _MIB
_chance = random.Random(20)

Sample = Callable[[grpc.aio.Channel, str], Awaitable[float]]


def _wire(data: bytes) -> reapi.Digest:
    return reapi.Digest(hash=Digest.of(data, HashFunction.SHA256).hash, size_bytes=len(data))


def _batch(count: int, size: int) -> reapi.BatchUpdateBlobsRequest:
    request = reapi.BatchUpdateBlobsRequest()
    for _ in range(count):
        data = _chance.randbytes(size)
        request.requests.add(digest=_wire(data), data=data)
    return request


async def _questions(channel: grpc.aio.Channel) -> float:
    """FindMissingBlobs for 100 digests, half of them stored."""
    cas = ContentAddressableStorageStub(channel)
    stored = _batch(50, 1000)
    await cas.BatchUpdateBlobs(stored)
    request = reapi.FindMissingBlobsRequest(blob_digests=[each.digest for each in stored.requests])
    request.blob_digests.extend(_wire(_chance.randbytes(20)) for _ in range(50))

    async def one() -> None:
        answer = await cas.FindMissingBlobs(request)
        assert len(answer.missing_blob_digests) == 50

    return await _median(one, _QUESTIONS)


async def _batches(channel: grpc.aio.Channel) -> float:
    cas = ContentAddressableStorageStub(channel)
    requests = iter([_batch(20, 4096) for _ in range(_BATCHES)])

    async def one() -> None:
        answer = await cas.BatchUpdateBlobs(next(requests))
        assert not any(each.status.code for each in answer.responses)

    return await _median(one, _BATCHES)


async def _streams(channel: grpc.aio.Channel) -> tuple[float, float]:
    """Write and read of 16 MiB."""
    stub = ByteStreamStub(channel)
    contents = [_chance.randbytes(_STREAM) for _ in range(_STREAMS)]
    named = [(data, _wire(data)) for data in contents]
    written, read = [], []
    for number, (data, digest) in enumerate(named):
        begun = time.perf_counter()
        answer = await stub.Write(_pieces(data, f"uploads/{number}/blobs/{digest.hash}/{digest.size_bytes}"))
        written.append(time.perf_counter() - begun)
        assert answer.committed_size == len(data)
    for _data, digest in named:
        begun = time.perf_counter()
        received = 0
        async for piece in stub.Read(bytestream.ReadRequest(resource_name=f"blobs/{digest.hash}/{digest.size_bytes}")):
            received += len(piece.data)
        read.append(time.perf_counter() - begun)
        assert received == _STREAM
    return p50(written), p50(read)


async def _pieces(data: bytes, name: str) -> AsyncIterator[bytestream.WriteRequest]:
    for at in range(0, len(data), _PIECE):
        yield bytestream.WriteRequest(
            resource_name=name if at == 0 else "",
            write_offset=at,
            data=data[at : at + _PIECE],
            finish_write=at + _PIECE >= len(data),
        )


async def _hits(channel: grpc.aio.Channel, *, store: bool) -> float:
    """Seconds per hit with so many calls in flight."""
    cache = ActionCacheStub(channel)
    if store:
        outputs = _batch(4, 1000)
        await ContentAddressableStorageStub(channel).BatchUpdateBlobs(outputs)
        result = _result([each.digest for each in outputs.requests])
        await cache.UpdateActionResult(
            reapi.UpdateActionResultRequest(action_digest=_wire(b"action"), action_result=result)
        )
    request = reapi.GetActionResultRequest(action_digest=_wire(b"action"))

    async def some(count: int) -> None:
        for _ in range(count):
            answer = await cache.GetActionResult(request)
            assert len(answer.output_files) == 4

    await some(100)
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(some(_HITS // _IN_FLIGHT))
    return (time.perf_counter() - begun) / _HITS


def _result(digests: Sequence[reapi.Digest]) -> reapi.ActionResult:
    return reapi.ActionResult(
        output_files=[reapi.OutputFile(path=f"out/{number}.o", digest=each) for number, each in enumerate(digests)]
    )


async def _median(one: Callable[[], Awaitable[None]], count: int) -> float:
    samples = []
    for _ in range(count):
        begun = time.perf_counter()
        await one()
        samples.append(time.perf_counter() - begun)
    return p50(samples)


async def _all(address: str) -> tuple[float, float, float, float]:
    async with grpc.aio.insecure_channel(address) as channel:
        return (await _questions(channel), await _batches(channel), *await _streams(channel))


async def _hits_at(address: str, *, store: bool) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        return await _hits(channel, store=store)


def measure() -> list[Row]:
    """The rows of the door."""
    rows: list[Row] = []
    with public_directory() as home:
        settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=127.0.0.1:0")
        corral = CorralProcess("scheduler", home, *settings)
        corral.start()
        try:
            ours = uvloop.run(_all(corral.reapi))
            hit_s = min(uvloop.run(_hits_at(corral.reapi, store=True)) for _ in range(2))
            rss = max(psutil.Process(corral.process.pid).memory_info().rss, 0)
        finally:
            corral.stop()
    bare_s = min(_bare_hits() for _ in range(2))
    rows.append(at_most(f"action cache hit, {_IN_FLIGHT} in flight", hit_s, "bare grpc.aio", bare_s, times=1 / 0.9))
    names = ("FindMissingBlobs × 100", "batch update 20 × 4 KiB", "stream write 16 MiB", "stream read 16 MiB")
    try:
        with casd_peer.running() as casd:
            theirs = uvloop.run(_all(casd.address))
            rows += [at_most(name, mine, "casd", its) for name, mine, its in zip(names, ours, theirs, strict=True)]
    except casd_peer.NoPeer as reason:
        rows += [beside(name, mine, f"no casd here ({reason})", mine) for name, mine in zip(names, ours, strict=True)]
    rows.append(
        Row(
            what="scheduler's memory after that",
            ours=f"{rss / _MIB:.0f} MiB",
            against="",
            ratio="",
            bound=f"≤ {_RSS_BOUND // _MIB} MiB",
            ok=rss <= _RSS_BOUND,
        )
    )
    return rows


def _bare_hits() -> float:
    server = subprocess.Popen([sys.executable, "-m", "bench.reapi"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        return uvloop.run(_hits_at(server.stdout.readline().strip(), store=False))
    finally:
        server.terminate()
        server.wait(10)


async def _serve_bare() -> None:
    """The bare thing: one handler that decodes the question and encodes a result of the same shape."""
    result = _result([_wire(b"%d" % number) for number in range(4)])

    async def answer(request: reapi.GetActionResultRequest, context: object) -> reapi.ActionResult:
        return result

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=reapi.GetActionResultRequest.FromString,
        response_serializer=reapi.ActionResult.SerializeToString,
    )
    service = "build.bazel.remote.execution.v2.ActionCache"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"GetActionResult": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve_bare())
