"""The door for Bazel as several processes at one port: content, results and executions, and processes that die."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from corral.actions.model import Command
from corral.app.reapi_processes import ROLE
from corral.doors.reapi.failures import _DETAILS_KEY
from corral.testing.actions import BuiltAction, build_action
from corral.testing.processes import CorralProcess, living_children, public_directory, wait_until, why_no_agent
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi.error_details_pb2 import PreconditionFailure
from corral.wire.reapi.operations_pb2 import CancelOperationRequest, GetOperationRequest
from corral.wire.reapi.operations_pb2_grpc import OperationsStub
from corral.wire.reapi.remote_execution_pb2_grpc import ActionCacheStub, ContentAddressableStorageStub, ExecutionStub
from corral.wire.reapi.status_pb2 import Status

pytestmark = pytest.mark.slow
CONNECTIONS, WITHIN_S = 16, 60
SETTINGS = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", "reapi.processes=2")
TOKEN = "token-of-ann-0123456789"
CONFIG = f"""
[tenants.ann]
tokens = ["{TOKEN}"]
[tenants.bob]
tokens = ["token-of-bob-0123456789"]
"""
ANN = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture(scope="module")
def up() -> Iterator[CorralProcess]:
    if why := why_no_agent():
        pytest.skip(why)
    with public_directory() as home:
        (home / "corral.toml").write_text(CONFIG)
        process = CorralProcess("up", home, *SETTINGS, "reapi.address=127.0.0.1:0")
        process.start()
        yield process
        assert process.stop() == 0, process.words()


def doors(up: CorralProcess) -> list[psutil.Process]:
    scheduler = up.child("scheduler")
    if scheduler is None:
        return []
    return living_children(scheduler, ROLE)


def connections(up: CorralProcess, stack: ExitStack) -> list[grpc.Channel]:
    """Several, each with a socket of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return [stack.enter_context(grpc.insecure_channel(up.reapi, options=options)) for _ in range(CONNECTIONS)]


def echo(words: str) -> BuiltAction:
    return build_action(Command(arguments=("/bin/echo", words)))


def upload(channel: grpc.Channel, action: BuiltAction) -> reapi.Digest:
    blobs = [
        reapi.BatchUpdateBlobsRequest.Request(digest=_wire(digest), data=data)
        for digest, data in action.blobs.items()
        if data
    ]
    request = reapi.BatchUpdateBlobsRequest(requests=blobs)
    answer = ContentAddressableStorageStub(channel).BatchUpdateBlobs(request, metadata=ANN, timeout=WITHIN_S)
    assert not any(each.status.code for each in answer.responses)
    return _wire(action.digest)


def _wire(digest: Any) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


def execute(channel: grpc.Channel, digest: reapi.Digest) -> tuple[str, reapi.ExecuteResponse]:
    request = reapi.ExecuteRequest(action_digest=digest)
    told = list(ExecutionStub(channel).Execute(request, metadata=ANN, timeout=WITHIN_S))
    answer = reapi.ExecuteResponse()
    assert told[-1].response.Unpack(answer)
    return told[-1].name, answer


def test_connections_are_spread_and_every_process_serves_everything(up: CorralProcess) -> None:
    with ExitStack() as stack:
        channels = connections(up, stack)

        for number, channel in enumerate(channels):
            digest = upload(channel, echo(f"words {number % 4}"))
            name, answer = execute(channel, digest)
            assert answer.result.stdout_raw == f"words {number % 4}\n".encode()
            assert name.startswith("ann/operations/")

        serving = [
            len([c for c in door.net_connections() if c.status == psutil.CONN_ESTABLISHED]) for door in doors(up)
        ]
        assert len(serving) == 2
        assert all(serving)
        for channel in channels:
            hit = ActionCacheStub(channel).GetActionResult(
                reapi.GetActionResultRequest(action_digest=digest), metadata=ANN, timeout=WITHIN_S
            )
            assert hit.exit_code == 0


def test_operations_are_found_and_canceled_through_any_process(up: CorralProcess) -> None:
    with ExitStack() as stack:
        channels = connections(up, stack)
        digest = upload(channels[0], build_action(Command(arguments=("/bin/sleep", "600"))))
        running = ExecutionStub(channels[0]).Execute(
            reapi.ExecuteRequest(action_digest=digest), metadata=ANN, timeout=WITHIN_S
        )
        name = next(iter(running)).name

        for channel in channels:
            found = OperationsStub(channel).GetOperation(GetOperationRequest(name=name), metadata=ANN, timeout=WITHIN_S)
            assert (found.name, found.done) == (name, False)
        followed = ExecutionStub(channels[1]).WaitExecution(
            reapi.WaitExecutionRequest(name=name), metadata=ANN, timeout=WITHIN_S
        )
        OperationsStub(channels[2]).CancelOperation(CancelOperationRequest(name=name), metadata=ANN, timeout=WITHIN_S)

        answer = reapi.ExecuteResponse()
        assert list(followed)[-1].response.Unpack(answer)
        assert grpc.StatusCode.CANCELLED.value[0] == answer.status.code


def test_the_schedulers_refusals_reach_the_client_as_they_are(up: CorralProcess) -> None:
    with ExitStack() as stack:
        channel = connections(up, stack)[0]
        absent = reapi.Digest(hash="ab" * 32, size_bytes=100)

        with pytest.raises(grpc.RpcError) as missing:
            list(
                ExecutionStub(channel).Execute(
                    reapi.ExecuteRequest(action_digest=absent), metadata=ANN, timeout=WITHIN_S
                )
            )
        with pytest.raises(grpc.RpcError) as foreign:
            list(
                ExecutionStub(channel).Execute(
                    reapi.ExecuteRequest(instance_name="bob", action_digest=absent), metadata=ANN, timeout=WITHIN_S
                )
            )

    failed: Any = missing.value
    assert failed.code() is grpc.StatusCode.FAILED_PRECONDITION
    details = next(value for key, value in failed.trailing_metadata() if key == _DETAILS_KEY)
    violations = PreconditionFailure()
    assert Status.FromString(details).details[0].Unpack(violations)
    assert violations.violations[0].subject == f"blobs/{'ab' * 32}/100"
    refused: Any = foreign.value
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_process_that_is_killed_is_replaced_and_the_others_go_on(up: CorralProcess) -> None:
    killed, spared = doors(up)
    killed.kill()

    def replaced() -> bool:
        return len(found := doors(up)) == 2 and killed not in found and all(_listens(each) for each in found)

    wait_until(replaced, "another process of the door", within_s=WITHIN_S, log=up.log)
    assert spared in doors(up)
    with ExitStack() as stack:
        for channel in connections(up, stack):
            _, answer = execute(channel, upload(channel, echo("after")))
            assert answer.result.stdout_raw == b"after\n"


def test_a_killed_scheduler_takes_its_door_along_and_both_come_back(up: CorralProcess) -> None:
    scheduler, before = up.child("scheduler"), doors(up)
    assert scheduler is not None
    scheduler.kill()

    def back() -> bool:
        return len(found := doors(up)) == 2 and not set(found) & set(before) and all(_listens(each) for each in found)

    wait_until(back, "another door", within_s=WITHIN_S, log=up.log)
    assert not [each for each in before if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    with ExitStack() as stack:
        channel = connections(up, stack)[0]
        _, answer = execute(channel, upload(channel, echo("again")))
        assert answer.result.stdout_raw == b"again\n"


def test_two_corrals_never_share_a_port_unawares(up: CorralProcess, tmp_path: Path) -> None:
    other = CorralProcess("scheduler", tmp_path / "other", *SETTINGS, f"reapi.address={up.reapi}")
    other.start_nowait()

    assert other.wait_ended(within_s=WITHIN_S) != 0
    assert f"{up.reapi} is in use by another process" in other.words()


def _listens(process: psutil.Process) -> bool:
    return any(each.status == psutil.CONN_LISTEN for each in process.net_connections())
