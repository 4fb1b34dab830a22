"""The door for Bazel beside buildbox-casd: questions, batches, streams; and hits of the action cache beside a bare
grpc.aio server that answers the same messages from memory."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager

import grpc
import psutil
import uvloop

from bench.report import Row, at_most, p50
from corral.kernel.digest import Digest, HashFunction
from corral.testing.casd import NoCasd, running_casd
from corral.testing.processes import CorralProcess, public_directory
from corral.wire.reapi import bytestream_pb2 as bytestream
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi.bytestream_pb2_grpc import ByteStreamStub
from corral.wire.reapi.remote_execution_pb2_grpc import ActionCacheStub, ContentAddressableStorageStub

_MIB = 1024**2
_STREAM = 16 * _MIB
_PIECE = _MIB
_QUESTIONS, _BATCHES, _STREAMS = 400, 80, 16
_NAMES = 100  # in one question
_HITS, IN_FLIGHT = 4000, 16
_RSS_BOUND = 150 * _MIB
_chance = random.Random(20)


def _wire(data: bytes) -> reapi.Digest:
    return reapi.Digest(hash=Digest.of(data, HashFunction.SHA256).hash, size_bytes=len(data))


def _batch(count: int, size: int) -> reapi.BatchUpdateBlobsRequest:
    request = reapi.BatchUpdateBlobsRequest()
    for _ in range(count):
        data = _chance.randbytes(size)
        request.requests.add(digest=_wire(data), data=data)
    return request


class _Calls:
    """The calls that are measured, at one server. Each gives its seconds."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._cas = ContentAddressableStorageStub(channel)
        self._stream = ByteStreamStub(channel)
        self._stored: list[reapi.Digest] = []
        self._absent = [_wire(_chance.randbytes(20)) for _ in range(_NAMES)]
        self._written: list[reapi.Digest] = []

    async def prepare(self) -> None:
        """Store what will be asked for."""
        stored = _batch(_NAMES, 1000)
        await self._cas.BatchUpdateBlobs(stored)
        self._stored = [each.digest for each in stored.requests]

    async def question(self) -> float:
        """FindMissingBlobs for 100 digests, half of which are stored."""
        return await self._ask(self._stored[: _NAMES // 2] + self._absent[: _NAMES // 2], missing=_NAMES // 2)

    async def question_of_stored(self) -> float:
        """The same, all stored."""
        return await self._ask(self._stored, missing=0)

    async def question_of_absent(self) -> float:
        """The same, none stored."""
        return await self._ask(self._absent, missing=_NAMES)

    async def _ask(self, digests: list[reapi.Digest], *, missing: int) -> float:
        request = reapi.FindMissingBlobsRequest(blob_digests=digests)
        begun = time.perf_counter()
        answer = await self._cas.FindMissingBlobs(request)
        took = time.perf_counter() - begun
        assert len(answer.missing_blob_digests) == missing
        return took

    async def batch(self) -> float:
        """A batch of 20 × 4 KiB."""
        request = _batch(20, 4096)
        begun = time.perf_counter()
        answer = await self._cas.BatchUpdateBlobs(request)
        took = time.perf_counter() - begun
        assert not any(each.status.code for each in answer.responses)
        return took

    async def write(self) -> float:
        """A stream of 16 MiB."""
        data = _chance.randbytes(_STREAM)
        digest = _wire(data)
        name = f"uploads/{len(self._written)}/blobs/{digest.hash}/{digest.size_bytes}"
        begun = time.perf_counter()
        answer = await self._stream.Write(_pieces(data, name))
        took = time.perf_counter() - begun
        assert answer.committed_size == len(data)
        self._written.append(digest)
        return took

    async def read(self) -> float:
        """The same stream back."""
        digest = self._written[-1]
        name = f"blobs/{digest.hash}/{digest.size_bytes}"
        begun = time.perf_counter()
        received = 0
        async for piece in self._stream.Read(bytestream.ReadRequest(resource_name=name)):
            received += len(piece.data)
        took = time.perf_counter() - begun
        assert received == _STREAM
        return took


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
        outputs, update = _stored()
        await ContentAddressableStorageStub(channel).BatchUpdateBlobs(outputs)
        await cache.UpdateActionResult(update)
    request = reapi.GetActionResultRequest(action_digest=action_digest())

    async def some(count: int) -> None:
        for _ in range(count):
            answer = await cache.GetActionResult(request)
            assert len(answer.output_files) == 4

    await some(100)
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(some(_HITS // IN_FLIGHT))
    return (time.perf_counter() - begun) / _HITS


def action_digest() -> reapi.Digest:
    """Of the action whose result is asked for."""
    return _wire(b"action")


def store_result(channel: grpc.Channel) -> None:
    """Put a result of four outputs into a server's cache, and see that it is told."""
    outputs, update = _stored()
    cache = ActionCacheStub(channel)
    ContentAddressableStorageStub(channel).BatchUpdateBlobs(outputs)
    cache.UpdateActionResult(update)
    assert len(cache.GetActionResult(reapi.GetActionResultRequest(action_digest=action_digest())).output_files) == 4


def _stored() -> tuple[reapi.BatchUpdateBlobsRequest, reapi.UpdateActionResultRequest]:
    outputs = _batch(4, 1000)
    result = _result([each.digest for each in outputs.requests])
    return outputs, reapi.UpdateActionResultRequest(action_digest=action_digest(), action_result=result)


def _result(digests: Sequence[reapi.Digest]) -> reapi.ActionResult:
    return reapi.ActionResult(
        output_files=[reapi.OutputFile(path=f"out/{number}.o", digest=each) for number, each in enumerate(digests)]
    )


async def _all(*addresses: str) -> list[list[float]]:
    """Medians of all calls, per server. The servers take turns, so that both see the same disk at the same time."""
    async with AsyncExitStack() as stack:
        servers = [_Calls(await stack.enter_async_context(grpc.aio.insecure_channel(address))) for address in addresses]
        for server in servers:
            await server.prepare()
        medians: list[list[float]] = [[] for _ in servers]
        counts = {
            _Calls.question: _QUESTIONS,
            _Calls.question_of_stored: _QUESTIONS,
            _Calls.question_of_absent: _QUESTIONS,
            _Calls.batch: _BATCHES,
        }
        for call, count in counts.items():
            took: list[list[float]] = [[] for _ in servers]
            for _ in range(count):
                for server, own in zip(servers, took, strict=True):
                    own.append(await call(server))
            for median, own in zip(medians, took, strict=True):
                median.append(p50(own))
        streams = [[(await server.write(), await server.read()) for server in servers] for _ in range(_STREAMS)]
        for number, median in enumerate(medians):
            written, read = zip(*[turn[number] for turn in streams], strict=True)
            median += [p50(written), p50(read)]
        return medians


async def _hits_at(address: str, *, store: bool) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        return await _hits(channel, store=store)


def measure() -> list[Row]:
    """The rows of the door."""
    rows: list[Row] = []
    with public_directory() as home, ExitStack() as stack:
        settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=127.0.0.1:0")
        corral = CorralProcess("scheduler", home, *settings)
        corral.start()
        stack.callback(corral.stop)
        try:
            casd = stack.enter_context(running_casd())
            ours, theirs = uvloop.run(_all(corral.reapi, casd.address))
        except NoCasd as reason:
            print(f"no casd here: {reason}", file=sys.stderr)
            (ours,), theirs = uvloop.run(_all(corral.reapi)), []
        hit_s = min(uvloop.run(_hits_at(corral.reapi, store=True)) for _ in range(3))
        rss = psutil.Process(corral.process.pid).memory_info().rss
    bare_s = min(_bare_hits() for _ in range(3))
    rows.append(at_most(f"action cache hit, {IN_FLIGHT} in flight", hit_s, "bare grpc.aio", bare_s, times=1 / 0.9))
    names = (
        "FindMissingBlobs × 100, half of them stored",
        "FindMissingBlobs × 100, all stored",
        "FindMissingBlobs × 100, none stored",
        "batch update 20 × 4 KiB",
        "stream write 16 MiB",
        "stream read 16 MiB",
    )
    rows += [at_most(name, mine, "casd", its) for name, mine, its in zip(names, ours, theirs, strict=False)]
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
    with running_bare() as address:
        return uvloop.run(_hits_at(address, store=False))


@contextmanager
def running_bare() -> Iterator[str]:
    """The bare server, as a process of its own; gives its address."""
    server = subprocess.Popen([sys.executable, "-m", "bench.reapi"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
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
