"""Functions in the words of the older interface."""

import msgspec
import pytest

from corral.client.function_model import FunctionView, InstanceView, RevisionView
from corral.doors.task_view.model import (
    LEGAL,
    TaskState,
    checked_task_id,
    defaults_of,
    find_task,
    previous_of,
    records_of,
    state_of,
    task_id_of,
    task_of,
    tasks_of,
)
from corral.functions.model import InstancePhase, InstanceStats, Kind, RevisionPhase, RevisionSpec, Scale, Share
from corral.kernel.errors import CallerError

SPEC = RevisionSpec(module="b3:" + "0" * 64 + "-8", kind=Kind.WASI_COMMAND, env={"A": "1"}, args=("x",))


def a_revision(
    name: str = "v1",
    *,
    phase: RevisionPhase = RevisionPhase.ACTIVE,
    wanted: int = 0,
    live: tuple[InstancePhase, ...] = (),
    requests: int = 0,
) -> RevisionView:
    return RevisionView(
        name=name,
        fingerprint="f",
        phase=phase,
        percent=0,
        deployed_s=1.5,
        spec=SPEC,
        scale=Scale(),
        wanted=wanted,
        stats=InstanceStats(requests=requests, cpu_s=0.25, memory_bytes=7),
        instances=tuple(InstanceView(id=f"fni_{n}", worker="wrk", phase=each, pid=42) for n, each in enumerate(live)),
    )


def a_function(name: str, *revisions: RevisionView, default: str = "") -> FunctionView:
    split = (Share(revision=default, percent=100),) if default else ()
    urls = (f"http://127.0.0.1:7080/functions/{name}",)
    return FunctionView(
        name=name,
        tenant="default",
        version=1,
        changed_s=9.0,
        default=default,
        split=split,
        revisions=revisions,
        urls=urls,
    )


@pytest.mark.parametrize(
    ("revision", "state"),
    [
        (a_revision(wanted=1), TaskState.PENDING),
        (a_revision(wanted=1, live=(InstancePhase.STARTING,)), TaskState.SCHEDULED),
        (a_revision(wanted=1, live=(InstancePhase.READY,)), TaskState.RUNNING),
        (a_revision(), TaskState.RUNNING),
        (a_revision(phase=RevisionPhase.STOPPED), TaskState.COMPLETED),
        (a_revision(phase=RevisionPhase.BROKEN), TaskState.FAILED),
        (a_revision(phase=RevisionPhase.BROKEN, requests=3), TaskState.FAILED),
    ],
)
def test_a_revision_stands_in_one_of_five_states_that_it_reached_legally(
    revision: RevisionView, state: TaskState
) -> None:
    assert state_of(revision) is state
    previous = previous_of(state, revision)
    assert (previous, state) in LEGAL or state is TaskState.PENDING


def test_a_crash_while_running_can_be_said_and_a_scheduled_task_is_never_completed_at_once() -> None:
    assert (TaskState.RUNNING, TaskState.FAILED) in LEGAL
    assert (TaskState.SCHEDULED, TaskState.COMPLETED) not in LEGAL
    assert not any(before in (TaskState.COMPLETED, TaskState.FAILED) for before, _ in LEGAL)


def test_names_that_would_run_together_get_keys_that_do_not() -> None:
    both = [a_function("a-b", a_revision("c")), a_function("a", a_revision("b-c"), a_revision("d"))]

    assert list(records_of(both)) == ["a-b@c", "a@b-c", "a-d"]
    assert len(tasks_of(both)) == 3
    assert len({task_id_of("t", "a-b", "c", ""), task_id_of("t", "a", "b-c", ""), task_id_of("t-a", "b", "c", "")}) == 3


def test_only_the_one_default_is_listed_as_default() -> None:
    functions = [a_function("a", a_revision("v1"), a_revision("v2"), default="v2"), a_function("b", a_revision("v1"))]

    defaults = defaults_of(functions)

    assert list(defaults) == ["a"]
    assert defaults["a"].task_id == task_id_of("default", "a", "v2", "f")
    assert [each.default_revision for each in records_of(functions).values()] == [False, True, False]


def test_a_task_is_written_with_that_interfaces_names() -> None:
    function = a_function("a", a_revision("v1", live=(InstancePhase.READY,)), default="v1")

    written = msgspec.json.decode(msgspec.json.encode(task_of(function, function.revisions[0])))

    assert list(written) == [
        *("Id", "Name", "State", "PreviousState", "Config", "WasmRunner"),
        *("HttpPort", "StartTime", "FinishTime", "CPU", "Memory"),
    ]
    assert written["Name"] == "task[a.v1.wasm]"
    assert (written["State"], written["PreviousState"], written["HttpPort"]) == (2, 1, 7080)
    assert written["Config"]["FunctionName"] == "a"
    assert written["Config"]["WasmFunctionHttpPort"] == 7080
    assert written["Config"]["Env"] == ["A=1"]
    assert written["WasmRunner"] == {"RunnerId": "fni_0", "Process": 42}
    assert written["StartTime"] == "1970-01-01T00:00:01.500000Z"
    assert (written["CPU"], written["Memory"]) == (0.25, 7)
    assert find_task([function], written["Id"]) == (function, function.revisions[0])


@pytest.mark.parametrize("text", ["", "x", "1234", "g" * 36, "../../etc"])
def test_what_is_no_uuid_is_no_task(text: str) -> None:
    with pytest.raises(CallerError, match="UUID"):
        checked_task_id(text)
