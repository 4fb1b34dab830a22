"""Whoever is turned away, at whichever door, hears one opaque sentence, and the ledger hears why."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from corral.app.own_certificate import CERTIFICATE
from corral.testing.processes import CorralProcess, wait_until, why_no_agent
from corral.wire.certificates import fingerprint_of
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi.remote_execution_pb2_grpc import ActionCacheStub, ContentAddressableStorageStub
from corral.wire.sessions import session_metadata
from corral.wire.transport import ClientTls, WireLimits, open_channel
from corral.wire.v1 import door_pb2
from corral.wire.v1.door_pb2_grpc import DoorStub

pytestmark = pytest.mark.slow
ANN, ADMIN, JUNK = (f"token-of-{name}-0123456789" for name in ("ann", "admin", "nobody"))
CONFIG = f"""
[access]
admin_tokens = ["{ADMIN}"]
[tenants.ann]
tokens = ["{ANN}"]
[tenants.bob]
tokens = ["token-of-bob-0123456789"]
[reapi]
cache_update = false
[worker_door]
listen = "127.0.0.1:0"
"""
SETTINGS = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.address=127.0.0.1:0")
ABSENT = reapi.Digest(hash="ab" * 32, size_bytes=5)


@pytest.fixture(scope="module")
def up() -> Iterator[CorralProcess]:
    if why := why_no_agent():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="corral-refusals-", dir="/tmp") as folder:
        (Path(folder) / "corral.toml").write_text(CONFIG)
        process = CorralProcess("up", Path(folder), *SETTINGS)
        process.start()
        yield process
        assert process.stop() == 0, process.words()


def bearer(token: str) -> tuple[tuple[str, str | bytes], ...]:
    return (("authorization", f"Bearer {token}"),)


def authorized(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def events(up: CorralProcess) -> list[dict[str, Any]]:
    answer = httpx.get(f"{up.url}/api/v1/security-events", headers=authorized(ADMIN), timeout=20)
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["events"]
    return found


def told(up: CorralProcess, component: str, kind: str, words: str) -> dict[str, Any]:
    """The event, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [e for e in events(up) if (e["component"], e["kind"]) == (component, kind) and words in e["reason"]]

    wait_until(lambda: bool(found()), f"the event {kind} of {component}", log=up.log)
    return found()[0]


def test_the_http_cache_tells_of_foreign_tenants_and_unknown_tokens(up: CorralProcess) -> None:
    foreign = httpx.get(f"{up.url}/cache/bob/key", headers=authorized(ANN), timeout=20)
    unknown = httpx.get(f"{up.url}/cache/bob/key", headers=authorized(JUNK), timeout=20)

    assert (foreign.status_code, unknown.status_code) == (403, 401)
    event = told(up, "rest", "request-refused", 'the cache of "bob"')
    assert event["tenant"] == "ann"
    assert event["request_id"] == foreign.headers["x-request-id"]
    assert told(up, "tenants", "token-unknown", "nobody's")["request_id"] == unknown.headers["x-request-id"]


def test_the_door_for_bazel_tells_of_foreign_instances_and_closed_caches(up: CorralProcess) -> None:
    with grpc.insecure_channel(up.reapi) as channel:
        with pytest.raises(grpc.RpcError):
            ContentAddressableStorageStub(channel).FindMissingBlobs(
                reapi.FindMissingBlobsRequest(instance_name="bob", blob_digests=[ABSENT]), metadata=bearer(ANN)
            )
        with pytest.raises(grpc.RpcError):
            ActionCacheStub(channel).UpdateActionResult(
                reapi.UpdateActionResultRequest(action_digest=ABSENT), metadata=bearer(ANN)
            )

    assert told(up, "reapi", "request-refused", 'the instance "bob"')["tenant"] == "ann"
    assert told(up, "reapi", "request-refused", "only workers fill")["tenant"] == "ann"


async def test_a_workers_own_door_tells_through_the_scheduler(up: CorralProcess) -> None:
    match = re.search(r'event="the door is open" address=(\S+)', up.words())
    assert match is not None, up.words()
    pinned = ClientTls(fingerprint=fingerprint_of(next(up.data.rglob(CERTIFICATE))))

    async with await open_channel(match[1], pinned, WireLimits()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await DoorStub(channel).FindMissing(
                door_pb2.DoorMissingRequest(tenant="bob"), metadata=session_metadata(JUNK), timeout=20
            )

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    event = told(up, "worker-door", "worker-token-invalid", "")
    assert event["reason"] not in str(refused.value.details())
    assert event["tenant"] == ""  # nobody proved one
    assert event["facts"]["claimed_tenant"] == "bob"
    assert event["facts"]["worker"].startswith("wrk_")
