"""ActionCache and Execution, asked by a plain gRPC client, over a queue that the test turns by hand."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import grpc
import pytest

from corral.actions.errors import MissingBlobs
from corral.actions.model import Ended
from corral.blobs.content import write_bytes
from corral.doors.reapi.config import ReapiConfig
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import Conflict, InvalidSpec, QuotaExceeded, SandboxLost
from corral.testing.reapi_door import Door, open_door
from corral.wire.reapi import operations_pb2 as operations
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.reapi.error_details_pb2 import BadRequest, PreconditionFailure
from corral.wire.reapi.operations_pb2_grpc import OperationsStub
from corral.wire.reapi.remote_execution_pb2_grpc import ActionCacheStub, ExecutionStub
from corral.wire.reapi.status_pb2 import Status

Code = grpc.StatusCode
Stage = reapi.ExecutionStage
ROOT = reapi.Directory()


def wire(data: bytes, function: HashFunction = HashFunction.SHA256) -> reapi.Digest:
    return reapi.Digest(hash=Digest.of(data, function).hash, size_bytes=len(data))


async def put(door: Door, data: bytes, function: HashFunction = HashFunction.SHA256) -> reapi.Digest:
    await write_bytes(door.blobs, "default", data, function=function)
    return wire(data, function)


async def put_action(door: Door, *arguments: str, function: HashFunction = HashFunction.SHA256) -> reapi.Digest:
    command = reapi.Command(arguments=arguments or ("true",), output_paths=["out"])
    await put(door, ROOT.SerializeToString(), function)
    action = reapi.Action(
        command_digest=await put(door, command.SerializeToString(), function),
        input_root_digest=wire(ROOT.SerializeToString(), function),
    )
    return await put(door, action.SerializeToString(), function)


async def result_with(door: Door, output: bytes = b"output", stdout: bytes = b"said") -> reapi.ActionResult:
    return reapi.ActionResult(
        output_files=[reapi.OutputFile(path="out", digest=await put(door, output))],
        stdout_digest=await put(door, stdout),
    )


def details_of(error: grpc.aio.AioRpcError) -> Status:
    found = {key: value for key, value in cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ())}
    return Status.FromString(found["grpc-status-details-bin"])


async def next_of(call: Any) -> operations.Operation:
    """The next message of a stream (gRPC's types do not say what it is)."""
    operation = await call.read()
    assert isinstance(operation, operations.Operation)
    return operation


def answer_of(operation: operations.Operation) -> reapi.ExecuteResponse:
    response = reapi.ExecuteResponse()
    assert operation.done
    assert operation.response.Unpack(response)
    return response


def stage_of(operation: operations.Operation) -> int:
    metadata = reapi.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata.stage


async def test_a_result_is_kept_although_its_action_was_never_stored() -> None:
    async with open_door() as door:
        cache = ActionCacheStub(door.channel)
        result = await result_with(door)
        with pytest.raises(grpc.aio.AioRpcError) as before:
            await cache.GetActionResult(reapi.GetActionResultRequest(action_digest=wire(b"an action")))

        stored = await cache.UpdateActionResult(
            reapi.UpdateActionResultRequest(action_digest=wire(b"an action"), action_result=result)
        )
        found = await cache.GetActionResult(reapi.GetActionResultRequest(action_digest=wire(b"an action")))

    assert before.value.code() is Code.NOT_FOUND
    assert stored == found == result


async def test_a_result_that_names_missing_blobs_is_refused_with_each_of_them() -> None:
    result = reapi.ActionResult(
        output_files=[reapi.OutputFile(path="out", digest=wire(b"gone"))], stderr_digest=wire(b"gone too")
    )
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ActionCacheStub(door.channel).UpdateActionResult(
                reapi.UpdateActionResultRequest(action_digest=wire(b"a"), action_result=result)
            )

    failure = PreconditionFailure()
    assert refused.value.code() is Code.FAILED_PRECONDITION
    assert details_of(refused.value).details[0].Unpack(failure)
    assert {violation.type for violation in failure.violations} == {"MISSING"}
    assert {violation.subject for violation in failure.violations} == {
        f"blobs/{wire(b'gone').hash}/4",
        f"blobs/{wire(b'gone too').hash}/8",
    }


async def test_a_hit_whose_output_has_gone_is_a_miss() -> None:
    async with open_door() as door:
        cache = ActionCacheStub(door.channel)
        await cache.UpdateActionResult(
            reapi.UpdateActionResultRequest(action_digest=wire(b"a"), action_result=await result_with(door))
        )
        await door.blobs.delete("default", [Digest.of(b"output", HashFunction.SHA256)])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cache.GetActionResult(reapi.GetActionResultRequest(action_digest=wire(b"a")))

    assert refused.value.code() is Code.NOT_FOUND


async def test_content_is_put_into_a_result_for_those_who_ask_as_far_as_it_fits() -> None:
    async with open_door(ReapiConfig(inline_bytes=9)) as door:
        cache = ActionCacheStub(door.channel)
        await cache.UpdateActionResult(
            reapi.UpdateActionResultRequest(action_digest=wire(b"a"), action_result=await result_with(door))
        )
        request = reapi.GetActionResultRequest(action_digest=wire(b"a"), inline_stdout=True)
        only_stdout = await cache.GetActionResult(request)
        request.inline_output_files.append("out")
        both = await cache.GetActionResult(request)
        request.inline_stdout = False
        only_file = await cache.GetActionResult(request)

    assert (only_stdout.stdout_raw, only_stdout.output_files[0].contents) == (b"said", b"")
    assert (both.stdout_raw, both.output_files[0].contents) == (b"said", b"")  # 4 + 6 bytes do not fit
    assert (only_file.stdout_raw, only_file.output_files[0].contents) == (b"", b"output")


async def test_an_action_cache_that_only_workers_fill_refuses_clients() -> None:
    async with open_door(ReapiConfig(cache_update=False)) as door:
        with pytest.raises(grpc.aio.AioRpcError, match="only workers") as refused:
            await ActionCacheStub(door.channel).UpdateActionResult(
                reapi.UpdateActionResultRequest(action_digest=wire(b"a"), action_result=reapi.ActionResult())
            )

    assert refused.value.code() is Code.PERMISSION_DENIED


@pytest.mark.parametrize("function", HashFunction)
async def test_an_execution_tells_its_stages_and_ends_with_the_result(function: HashFunction) -> None:
    value = {HashFunction.SHA256: 1, HashFunction.BLAKE3: 9}[function]
    async with open_door() as door:
        action = await put_action(door, function=function)
        call = ExecutionStub(door.channel).Execute(
            reapi.ExecuteRequest(action_digest=action, digest_function=value)  # type: ignore[arg-type]
        )
        queued = await next_of(call)
        execution = await door.queue.wait_submitted()
        door.queue.begin(execution)
        executing = await next_of(call)
        door.queue.end(execution, reapi.ActionResult(exit_code=1, stdout_raw=b"no").SerializeToString())
        ended = await next_of(call)
        after: object = await call.read()

    assert [stage_of(each) for each in (queued, executing, ended)] == [Stage.QUEUED, Stage.EXECUTING, Stage.COMPLETED]
    assert len({each.name for each in (queued, executing, ended)}) == 1
    assert not (queued.done or executing.done)
    answer = answer_of(ended)
    assert (answer.status.code, answer.cached_result) == (0, False)
    assert (answer.result.exit_code, answer.result.stdout_raw) == (1, b"no")
    assert not isinstance(after, operations.Operation)


async def test_a_cached_result_is_told_at_once_unless_the_lookup_is_skipped() -> None:
    async with open_door() as door:
        action = await put_action(door)
        result = await result_with(door)
        await ActionCacheStub(door.channel).UpdateActionResult(
            reapi.UpdateActionResultRequest(action_digest=action, action_result=result)
        )
        execution = ExecutionStub(door.channel)

        (hit,) = [each async for each in execution.Execute(reapi.ExecuteRequest(action_digest=action))]
        (again,) = [each async for each in execution.WaitExecution(reapi.WaitExecutionRequest(name=hit.name))]
        skipping = execution.Execute(reapi.ExecuteRequest(action_digest=action, skip_cache_lookup=True))
        first = await next_of(skipping)

    assert answer_of(hit).cached_result
    assert answer_of(hit).result == answer_of(again).result == result
    assert stage_of(first) == Stage.QUEUED


async def test_whoever_comes_back_hears_how_it_ended() -> None:
    async with open_door() as door:
        action = await put_action(door)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as doomed:
            first = await next_of(ExecutionStub(doomed).Execute(reapi.ExecuteRequest(action_digest=action)))
        door.queue.end(await door.queue.wait_submitted(), reapi.ActionResult(exit_code=3).SerializeToString())

        call = ExecutionStub(door.channel).WaitExecution(reapi.WaitExecutionRequest(name=first.name))
        (ended,) = [each async for each in call]

    assert answer_of(ended).result.exit_code == 3


async def test_equal_actions_in_flight_are_one_execution() -> None:
    async with open_door() as door:
        action = await put_action(door)
        one = ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=action))
        two = ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=action))
        names = {(await next_of(one)).name, (await next_of(two)).name}

    assert len(names) == len(door.queue.states) == 1


@pytest.mark.parametrize(
    "name", ["", "nonsense", "default/operations/", "default/operations/exec_77", "x/operations/y"]
)
async def test_an_operation_that_nobody_knows_is_not_found_or_not_yours(name: str) -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(ExecutionStub(door.channel).WaitExecution(reapi.WaitExecutionRequest(name=name))))

    assert refused.value.code() is (Code.PERMISSION_DENIED if name.startswith("x/") else Code.NOT_FOUND)


async def test_an_action_that_is_not_stored_is_named_so_that_the_client_uploads_it() -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=wire(b"gone")))))

    failure = PreconditionFailure()
    assert refused.value.code() is Code.FAILED_PRECONDITION
    assert details_of(refused.value).details[0].Unpack(failure)
    assert failure.violations[0].subject == f"blobs/{wire(b'gone').hash}/4"


async def test_inputs_that_are_missing_are_named_in_the_answer() -> None:
    missing = [Digest.of(b"one", HashFunction.SHA256), Digest.of(b"two", HashFunction.SHA256)]
    async with open_door() as door:
        action = await put_action(door)
        call = ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=action))
        door.queue.end(await door.queue.wait_submitted(), None, error=MissingBlobs(missing))
        *_, ended = [each async for each in call]

    answer, failure = answer_of(ended), PreconditionFailure()
    assert answer.status.code == Code.FAILED_PRECONDITION.value[0]
    assert answer.status.details[0].Unpack(failure)
    assert {each.subject for each in failure.violations} == {f"blobs/{digest.hash}/3" for digest in missing}
    assert not ended.HasField("error")


@pytest.mark.parametrize(
    ("ended", "exit_code", "code"),
    [
        (Ended.SIGNALED, 137, 0),
        (Ended.LIMIT, 137, 0),
        (Ended.TIMED_OUT, 137, Code.DEADLINE_EXCEEDED.value[0]),
    ],
)
async def test_an_end_that_was_not_the_commands_own_keeps_its_output(ended: Ended, exit_code: int, code: int) -> None:
    result = reapi.ActionResult(exit_code=exit_code, stdout_raw=b"so far").SerializeToString()
    async with open_door() as door:
        action = await put_action(door)
        call = ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=action))
        door.queue.end(await door.queue.wait_submitted(), result, ended=ended, message="why it ended")
        *_, last = [each async for each in call]

    answer = answer_of(last)
    assert (answer.status.code, answer.result.stdout_raw, answer.message) == (code, b"so far", "why it ended")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SandboxLost("the sandbox died"), Code.UNAVAILABLE),
        (Conflict("the execution was canceled"), Code.CANCELLED),
        (InvalidSpec("no such program"), Code.INVALID_ARGUMENT),
        (QuotaExceeded("the tenant's bytes are used up"), Code.RESOURCE_EXHAUSTED),
        (RuntimeError("a defect"), Code.INTERNAL),
    ],
)
async def test_a_failure_of_ours_has_the_status_that_tells_the_client_what_to_do(error: Exception, code: Code) -> None:
    async with open_door() as door:
        action = await put_action(door)
        call = ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=action))
        door.queue.end(await door.queue.wait_submitted(), None, error=error)
        *_, ended = [each async for each in call]

    assert answer_of(ended).status.code == code.value[0]
    assert "defect" not in answer_of(ended).status.message


async def test_an_operation_can_be_looked_at_and_canceled() -> None:
    async with open_door() as door:
        action = await put_action(door)
        call = ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=action))
        name = (await next_of(call)).name
        stub = OperationsStub(door.channel)

        seen = await stub.GetOperation(operations.GetOperationRequest(name=name))
        await stub.CancelOperation(operations.CancelOperationRequest(name=name))

    assert (seen.name, seen.done, stage_of(seen)) == (name, False, Stage.QUEUED)
    assert door.queue.canceled == [name.removeprefix("default/operations/")]


async def test_a_bad_field_is_named_in_the_details() -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(ExecutionStub(door.channel).Execute(reapi.ExecuteRequest())))

    bad = BadRequest()
    assert refused.value.code() is Code.INVALID_ARGUMENT
    assert details_of(refused.value).details[0].Unpack(bad)
    assert bad.field_violations[0].field == "action_digest"


async def test_a_door_that_closes_ends_those_who_wait() -> None:
    async with open_door() as door:
        action = await put_action(door)
        call = ExecutionStub(door.channel).Execute(reapi.ExecuteRequest(action_digest=action))
        await call.read()
        waiting = asyncio.ensure_future(call.read())
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await waiting
