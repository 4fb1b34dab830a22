"""What a tenant that queues 2,000 long actions does to another's 20, beside those 20 alone on half the fleet."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
import uvloop

from bench.actions import digest_of, upload
from bench.report import Row
from bench.server import running
from corral.actions.model import Command
from corral.testing.actions import BuiltAction, build_action
from corral.testing.processes import free_ports
from corral.wire.reapi import remote_execution_pb2 as pb
from corral.wire.reapi.remote_execution_pb2_grpc import ExecutionStub

_SLOTS: Final = 8
_MANY: Final = 2000
_FEW: Final = 20
_ACTION_S: Final = 0.5
_BOUND: Final = 2.2
_FIRST: Final = -1000
_CONNECTIONS: Final = 4  # of the many: a connection carries 1,000 calls
_OWN_CONNECTION: Final = (("grpc.use_local_subchannel_pool", 1),)
_SLEEP: Final = Command(arguments=("/bin/sleep", str(_ACTION_S)))


def _headers(tenant: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {_token(tenant)}"),)


def _token(tenant: str) -> str:
    return f"token-of-{tenant}-0123456789"


def _actions(count: int, salt: str) -> list[BuiltAction]:
    return [build_action(_SLEEP, salt=f"{salt}{number}".encode(), do_not_cache=True) for number in range(count)]


async def _finish(channel: grpc.aio.Channel, tenant: str, action: BuiltAction) -> None:
    call: Any = ExecutionStub(channel).Execute(
        pb.ExecuteRequest(instance_name=tenant, action_digest=digest_of(action)), metadata=_headers(tenant)
    )
    answer = pb.ExecuteResponse()
    async for update in call:
        update.response.Unpack(answer)
    if answer.status.code or answer.result.exit_code:
        raise RuntimeError(f"an action went wrong: {answer.status.message}")


async def _queue(channel: grpc.aio.Channel, tenant: str, action: BuiltAction) -> Any:
    """Ask for it before everybody else, and wait only until it is known."""
    request = pb.ExecuteRequest(instance_name=tenant, action_digest=digest_of(action))
    request.execution_policy.priority = _FIRST
    call: Any = ExecutionStub(channel).Execute(request, metadata=_headers(tenant))
    await call.read()
    return call


async def _few(address: str, *, beside: int) -> float:
    """Seconds that a tenant's few actions take, all asked for at once, after ``beside`` of another were queued."""
    async with AsyncExitStack() as stack:
        channel, *others = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OWN_CONNECTION))
            for _ in range(1 + _CONNECTIONS)
        ]
        few, many = _actions(_FEW, "few"), _actions(beside, "many")
        await upload(channel, few, tenant="few", metadata=_headers("few"))
        await upload(channel, many, tenant="many", metadata=_headers("many"))
        queued = [await _queue(others[number % _CONNECTIONS], "many", each) for number, each in enumerate(many)]
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for action in few:
                group.create_task(_finish(channel, "few", action))
        took_s = time.perf_counter() - began_s
        for call in queued:
            call.cancel()
        return took_s


def _took_s(slots: int, *, beside: int) -> float:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    tenants = [f"tenants.{tenant}.tokens={_token(tenant)}" for tenant in ("few", "many")]
    with running(f"reapi.address={address}", f"worker.slots={slots}", *tenants):
        return uvloop.run(_few(address, beside=beside))


def measure() -> Sequence[Row]:
    """All rows of this page."""
    alone_s = _took_s(_SLOTS // 2, beside=0)
    crowded_s = _took_s(_SLOTS, beside=_MANY)
    return [
        Row(
            what=f"{_FEW} actions of {_ACTION_S:g} s on {_SLOTS} slots, behind another's {_MANY} of first priority",
            ours=f"{crowded_s:.2f} s",
            against=f"the {_FEW} alone on {_SLOTS // 2} slots {alone_s:.2f} s",
            ratio=f"{crowded_s / alone_s:.2f} ×",
            bound=f"≤ {_BOUND:g} ×",
            ok=crowded_s <= _BOUND * alone_s,
        )
    ]
