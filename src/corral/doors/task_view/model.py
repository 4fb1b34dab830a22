"""That interface's nouns, and what a function is in its words; pure.

There, a *task* is one revision of a function. Field names and the numbers of states and executors are its own.
"""

import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final
from urllib.parse import urlsplit

import msgspec

from corral.client.function_model import FunctionView, RevisionView
from corral.functions.model import InstancePhase, RevisionPhase
from corral.kernel.errors import CallerError

_NAMESPACE: Final = uuid.UUID("c0d3fa57-0000-5000-8000-77617374616b")
_NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
_NO_TIME: Final = "0001-01-01T00:00:00Z"
NAMELESS: Final = "default"
"""The revision of those who name none."""


class TaskState(IntEnum):
    """Where a task stands."""

    PENDING = 0
    SCHEDULED = 1
    RUNNING = 2
    COMPLETED = 3
    FAILED = 4


LEGAL: Final = frozenset(
    {
        (TaskState.PENDING, TaskState.SCHEDULED),
        (TaskState.PENDING, TaskState.FAILED),
        (TaskState.SCHEDULED, TaskState.RUNNING),
        (TaskState.SCHEDULED, TaskState.FAILED),
        (TaskState.RUNNING, TaskState.COMPLETED),
        (TaskState.RUNNING, TaskState.FAILED),  # a crash; the original could not say it
    }
)


class Executor(IntEnum):
    """What ran a program there. Here it is all one."""

    UNKNOWN = 0
    SAT = 1
    GALAGO = 2


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="pascal"):
    """The body of a deployment. Ids, times and ports are the server's, so what a client sends of them is not used.

    Attributes:
        wasm_file_name: a name for people, or the digest of a stored program.
        wasm_registry_url: where to fetch the program; only below ``functions.module_urls``.
    """

    id: str = ""
    executor: Executor = Executor.UNKNOWN
    wasm_file_name: str = ""
    wasm_function_http_port: int = 0
    wasm_registry_url: str = ""
    function_name: str
    function_revision: str = ""
    default_revision: bool = False
    timestamp: str = ""


class TaskConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What was deployed."""

    executor: int = Executor.UNKNOWN
    executor_path: str = ""
    wasm_file_name: str = ""
    wasm_file_path: str = ""
    wasm_function_http_port: int = 0
    wasm_registry_url: str = ""
    function_name: str = ""
    function_revision: str = ""
    default_revision: bool = False
    env: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


class TaskRunner(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Who runs it: the first live instance."""

    runner_id: str = ""
    process: int = 0


class TaskAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A revision, as a task."""

    id: str
    name: str
    state: int
    previous_state: int
    config: TaskConfig
    wasm_runner: TaskRunner
    http_port: int
    start_time: str
    finish_time: str
    cpu: float = msgspec.field(name="CPU", default=0.0)
    memory: int = 0


class FunctionRecord(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A revision in a list of functions."""

    wasm_function_http_port: int
    task_id: str
    default_revision: bool


class ErrResponse(msgspec.Struct, frozen=True, kw_only=True):
    """How that interface writes errors."""

    status: int = msgspec.field(name="HTTPStatusCode")
    message: str = msgspec.field(name="Message")


def task_id_of(tenant: str, function: str, revision: str, fingerprint: str) -> str:
    """The same for the same revision, and for no other."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join((tenant, function, revision, fingerprint))))


def checked_task_id(text: str) -> str:
    """``text`` as a UUID. Raises CallerError (400)."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise CallerError(f'"{text[:60]}" is not the id of a task; it is a UUID') from error


def state_of(revision: RevisionView) -> TaskState:
    """Where it stands. A revision that waits for its first request is running: it answers."""
    if revision.phase is RevisionPhase.STOPPED:
        return TaskState.COMPLETED
    if revision.phase is RevisionPhase.BROKEN:
        return TaskState.FAILED
    live = {each.phase for each in revision.instances}
    if InstancePhase.READY in live or not revision.wanted:
        return TaskState.RUNNING
    return TaskState.SCHEDULED if live else TaskState.PENDING


def previous_of(state: TaskState, revision: RevisionView) -> TaskState:
    """The state before; every pair is a legal transition, except that a pending task was always pending."""
    if state is TaskState.FAILED and not revision.stats.requests:
        return TaskState.SCHEDULED
    return {
        TaskState.PENDING: TaskState.PENDING,
        TaskState.SCHEDULED: TaskState.PENDING,
        TaskState.RUNNING: TaskState.SCHEDULED,
        TaskState.COMPLETED: TaskState.RUNNING,
        TaskState.FAILED: TaskState.RUNNING,
    }[state]


def task_of(function: FunctionView, revision: RevisionView) -> TaskAnswer:
    """A revision in that interface's words."""
    state, file_name = state_of(revision), f"{function.name}.{revision.name}.wasm"
    first = next((each for each in revision.instances if each.phase is InstancePhase.READY), None)
    over = state in (TaskState.COMPLETED, TaskState.FAILED)
    port = port_of(function)
    return TaskAnswer(
        id=task_id_of(function.tenant, function.name, revision.name, revision.fingerprint),
        name=f"task[{file_name}]",
        state=state,
        previous_state=previous_of(state, revision),
        config=TaskConfig(
            wasm_file_name=file_name,
            wasm_file_path=revision.spec.module,
            wasm_function_http_port=port,
            function_name=function.name,
            function_revision=revision.name,
            default_revision=function.default == revision.name,
            env=tuple(f"{name}={value}" for name, value in revision.spec.env.items()),
            args=revision.spec.args,
        ),
        wasm_runner=TaskRunner(runner_id=first.id if first else _NO_UUID, process=first.pid if first else 0),
        http_port=port,
        start_time=_time(revision.deployed_s),
        finish_time=_time(function.changed_s) if over else _NO_TIME,
        cpu=revision.stats.cpu_s,
        memory=revision.stats.memory_bytes,
    )


def tasks_of(functions: Sequence[FunctionView]) -> dict[str, TaskAnswer]:
    """Every revision, by the id of its task."""
    found = (task_of(function, revision) for function in functions for revision in function.revisions)
    return {task.id: task for task in found}


def records_of(functions: Sequence[FunctionView]) -> dict[str, FunctionRecord]:
    """Every revision by ``function-revision``; where two would have one key, both have ``function@revision``."""
    pairs = [(function, revision) for function in functions for revision in function.revisions]
    keys = [f"{function.name}-{revision.name}" for function, revision in pairs]
    return {
        key if keys.count(key) == 1 else f"{function.name}@{revision.name}": _record(function, revision)
        for key, (function, revision) in zip(keys, pairs, strict=True)
    }


def defaults_of(functions: Sequence[FunctionView]) -> dict[str, FunctionRecord]:
    """The default of every function that has one."""
    return {
        function.name: _record(function, revision)
        for function in functions
        for revision in function.revisions
        if function.default == revision.name
    }


def find_task(functions: Collection[FunctionView], task_id: str) -> tuple[FunctionView, RevisionView] | None:
    """The revision whose task has this id."""
    for function in functions:
        for revision in function.revisions:
            if task_id_of(function.tenant, function.name, revision.name, revision.fingerprint) == task_id:
                return function, revision
    return None


def port_of(function: FunctionView) -> int:
    """Where the function is called; all functions share the front's port. 0 while there is no front."""
    return (urlsplit(function.urls[0]).port or 80) if function.urls else 0


def _record(function: FunctionView, revision: RevisionView) -> FunctionRecord:
    return FunctionRecord(
        wasm_function_http_port=port_of(function),
        task_id=task_id_of(function.tenant, function.name, revision.name, revision.fingerprint),
        default_revision=function.default == revision.name,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat().replace("+00:00", "Z")
