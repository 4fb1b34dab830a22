"""Who may use which instance: tokens, certificates, scopes; health and reflection for everybody."""

from collections.abc import Awaitable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from corral.doors.reapi.config import ReapiConfig
from corral.kernel.digest import Digest, HashFunction
from corral.tenants.model import TenantConfig
from corral.testing.certificates import issue
from corral.testing.reapi_door import Door, open_door
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi.remote_execution_pb2_grpc import (
    ActionCacheStub,
    CapabilitiesStub,
    ContentAddressableStorageStub,
    ExecutionStub,
)
from corral.wire.transport import ServerTls

Code = grpc.StatusCode
ANN, BOB, EYE = "token-of-ann-0001", "token-of-bob-0001", "token-of-eye-0001"
TENANTS = {
    "ann": TenantConfig(tokens=(ANN,)),
    "bob": TenantConfig(tokens=(BOB,)),
    "eye": TenantConfig(tokens=(EYE,), scopes=("blobs:read", "actions:read")),
}
DATA = b"ann's own"
NAMED = reapi.Digest(hash=Digest.of(DATA, HashFunction.SHA256).hash, size_bytes=len(DATA))


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def update(instance: str) -> reapi.BatchUpdateBlobsRequest:
    request = reapi.BatchUpdateBlobsRequest(instance_name=instance)
    request.requests.add(digest=NAMED, data=DATA)
    return request


async def missing(door: Door, instance: str, token: str) -> int:
    request = reapi.FindMissingBlobsRequest(instance_name=instance, blob_digests=[NAMED])
    answer = await ContentAddressableStorageStub(door.channel).FindMissingBlobs(request, metadata=bearer(token))
    return len(answer.missing_blob_digests)


async def test_the_instance_is_the_tenant_and_nobody_sees_anothers() -> None:
    async with open_door(tenants=TENANTS) as door:
        await ContentAddressableStorageStub(door.channel).BatchUpdateBlobs(update("ann"), metadata=bearer(ANN))

        assert await missing(door, "ann", ANN) == 0
        assert await missing(door, "", ANN) == 0  # no name: the caller's own
        assert await missing(door, "bob", BOB) == 1
        for stranger in ("bob", "nobody", "../ann"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await missing(door, stranger, ANN)
            assert refused.value.code() is Code.PERMISSION_DENIED

    assert len(door.refusals) == 3


@pytest.mark.parametrize("metadata", [(), bearer("token-of-nobody-1"), (("authorization", f"Basic {ANN}"),)])
async def test_without_a_valid_token_nothing_is_told(metadata: tuple[tuple[str, str], ...]) -> None:
    async with open_door(tenants=TENANTS) as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await CapabilitiesStub(door.channel).GetCapabilities(
                reapi.GetCapabilitiesRequest(instance_name="ann"), metadata=metadata
            )

    assert refused.value.code() is Code.UNAUTHENTICATED
    assert len(door.refusals) == 1


async def test_scopes_are_told_as_capabilities_and_enforced() -> None:
    async with open_door(tenants=TENANTS) as door:
        told = await CapabilitiesStub(door.channel).GetCapabilities(
            reapi.GetCapabilitiesRequest(), metadata=bearer(EYE)
        )
        assert await missing(door, "eye", EYE) == 1
        calls: list[Awaitable[object]] = [
            ContentAddressableStorageStub(door.channel).BatchUpdateBlobs(update("eye"), metadata=bearer(EYE)),
            ActionCacheStub(door.channel).UpdateActionResult(
                reapi.UpdateActionResultRequest(action_digest=NAMED), metadata=bearer(EYE)
            ),
            anext(
                aiter(
                    ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=NAMED), metadata=bearer(EYE))
                )
            ),
        ]
        codes = []
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            codes.append(refused.value.code())

    assert not told.execution_capabilities.exec_enabled
    assert not told.cache_capabilities.action_cache_update_capabilities.update_enabled
    assert codes == [Code.PERMISSION_DENIED] * 3


async def test_a_certificate_says_which_tenant_calls(tmp_path: Path) -> None:
    ca = issue(tmp_path, "ca", ca=True)
    server = issue(tmp_path, "server", by=ca)
    shown = {name: issue(tmp_path, name, by=ca) for name in ("ann", "stranger")}
    tls = ServerTls(certificate=str(server.crt), key=str(server.key), client_ca=str(ca.crt))

    async def capabilities(name: str, instance: str) -> None:
        pair = shown[name].key.read_bytes(), shown[name].crt.read_bytes()
        credentials = grpc.ssl_channel_credentials(ca.crt.read_bytes(), *pair)
        async with grpc.aio.secure_channel(f"127.0.0.1:{door.port}", credentials) as channel:
            await CapabilitiesStub(channel).GetCapabilities(
                reapi.GetCapabilitiesRequest(instance_name=instance), timeout=10
            )

    async with open_door(ReapiConfig(tls=tls), tenants=TENANTS) as door:
        await capabilities("ann", "ann")
        with pytest.raises(grpc.aio.AioRpcError) as other:
            await capabilities("ann", "bob")
        with pytest.raises(grpc.aio.AioRpcError) as stranger:
            await capabilities("stranger", "")
        with pytest.raises(grpc.aio.AioRpcError) as plain:
            await CapabilitiesStub(door.channel).GetCapabilities(reapi.GetCapabilitiesRequest(), timeout=10)

    assert other.value.code() is Code.PERMISSION_DENIED
    assert stranger.value.code() is Code.UNAUTHENTICATED
    assert plain.value.code() is Code.UNAVAILABLE


async def test_health_and_reflection_need_no_token() -> None:
    async with open_door(tenants=TENANTS) as door:
        health = health_pb2_grpc.HealthStub(door.channel)
        well = await health.Check(health_pb2.HealthCheckRequest())
        one = await health.Check(health_pb2.HealthCheckRequest(service="build.bazel.remote.execution.v2.Execution"))
        watched = await anext(aiter(health.Watch(health_pb2.HealthCheckRequest())))
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        reflection = reflection_pb2_grpc.ServerReflectionStub(door.channel)
        answers = [
            each
            async for each in reflection.ServerReflectionInfo(
                iter(
                    [
                        reflection_pb2.ServerReflectionRequest(list_services=""),
                        reflection_pb2.ServerReflectionRequest(
                            file_containing_symbol="build.bazel.remote.execution.v2.Execution"
                        ),
                    ]
                )
            )
        ]

    assert well.status == one.status == watched.status == health_pb2.HealthCheckResponse.SERVING
    assert unknown.value.code() is Code.NOT_FOUND
    assert {each.name for each in answers[0].list_services_response.service} >= {
        "build.bazel.remote.execution.v2.Execution",
        "google.bytestream.ByteStream",
    }
    assert answers[1].file_descriptor_response.file_descriptor_proto
