"""Tasks: submit, look, wait, cancel, run again, and the questions "what happened" and "why"."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from litestar import Controller, Request, get, post
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Reference, RequestBody, Schema
from litestar.params import FromPath, FromQuery, HeaderParameter, PathParameter, QueryParameter

from corral.client.model import RunView, Story, StoryEvent, SubmitBatch, TaskBatch, TaskPage, TaskView, Why
from corral.doors.rest.decode import decode_submission
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.services import Services
from corral.kernel.errors import InvalidSpec
from corral.tasks.model import Phase
from corral.tasks.payload import SCHEMA

_KEY_CHARACTERS: Final = 200

TaskId = Annotated[str, PathParameter(description="Id of the task, `task_…`")]
Limit = Annotated[int, QueryParameter(description="Rows in the page")]
After = Annotated[str, QueryParameter(description="`next` of the page before")]


@dataclass
class SubmitOperation(Operation):
    """Describes the body that :func:`decode_submission` reads by hand, to report all mistakes at once."""

    def __post_init__(self) -> None:
        one = Reference(ref="#/components/schemas/TaskDefinition")
        batch = Schema(
            type=OpenAPIType.OBJECT,
            description=inspect.cleandoc(SubmitBatch.__doc__ or ""),
            properties={
                "tasks": Schema(type=OpenAPIType.ARRAY, items=one),
                "ids": Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING)),
            },
            required=["tasks"],
        )
        self.request_body = RequestBody(
            required=True,
            description='One task, or `{"tasks": [...]}`: all are accepted, or none.',
            content={"application/json": OpenAPIMediaType(schema=Schema(one_of=[one, batch]))},
        )


class TaskDoor(Controller):
    """`/tasks`"""

    path = "/tasks"
    tags = ("tasks",)
    opt = {"area": "tasks"}  # noqa: RUF012 (Litestar copies it per handler)

    @post(
        operation_class=SubmitOperation,
        summary="Queue one task or a batch",
        description="A repeated `Idempotency-Key` answers with the tasks of the first request and queues nothing new.",
    )
    async def submit(
        self,
        request: Request[Any, Any, Any],
        services: GivenServices,
        caller: GivenCaller,
        idempotency_key: Annotated[str, HeaderParameter(name="idempotency-key", required=False)] = "",
    ) -> TaskView | TaskBatch:
        """Accepts all or none."""
        if len(idempotency_key) > _KEY_CHARACTERS:
            raise InvalidSpec(f"Idempotency-Key: is longer than {_KEY_CHARACTERS} characters", field="idempotency-key")
        sent = decode_submission(
            await request.body(),
            batch_tasks=services.limits.batch_tasks,
            check_payload=services.tasks.payload_mistakes,
        )
        tasks = await services.tasks.submit(caller, sent.definitions, ids=sent.ids, idempotency_key=idempotency_key)
        return TaskBatch(tasks=tuple(tasks)) if sent.batch else tasks[0]

    @get(summary="List tasks, newest first")
    async def page(
        self,
        services: GivenServices,
        caller: GivenCaller,
        phase: FromQuery[str] = "",
        group: FromQuery[str] = "",
        name: FromQuery[str] = "",
        limit: Limit = 50,
        after: After = "",
    ) -> TaskPage:
        """One page."""
        if phase and phase not in list(Phase):
            raise InvalidSpec(f'phase: "{phase}" is not one of {", ".join(Phase)}', field="phase")
        return await services.tasks.page(
            caller.tenant, phase=phase, group=group, name=name, limit=page_rows(services, limit), after=after
        )

    @get(
        "/{task_id:str}",
        summary="One task; or wait until it changed",
        description="With `wait_s` the answer is held until phase, run or start differ from the `known_…` values.",
    )
    async def one(
        self,
        services: GivenServices,
        caller: GivenCaller,
        task_id: TaskId,
        wait_s: FromQuery[float] = 0.0,
        known_phase: FromQuery[str] = "",
        known_run: FromQuery[int] = -1,
        known_started: FromQuery[bool] = False,
    ) -> TaskView:
        """The task now, or as soon as it is no longer what the caller knows."""
        clock = services.clock
        until_s = clock.monotonic_s() + min(max(wait_s, 0.0), services.limits.wait_s)
        while True:
            task = await services.tasks.get(caller.tenant, task_id)
            run = task.last_run
            seen = (task.phase.value, -1 if run is None else run.run, run is not None and run.started_s is not None)
            left_s = until_s - clock.monotonic_s()
            if seen != (known_phase, known_run, known_started) or left_s <= 0:
                return task
            await services.tasks.wait_changed(within_s=left_s)

    @get("/{task_id:str}/runs", summary="The task's runs, oldest first")
    async def runs(self, services: GivenServices, caller: GivenCaller, task_id: TaskId) -> Sequence[RunView]:
        """All runs."""
        return (await services.tasks.get(caller.tenant, task_id)).runs

    @get("/{task_id:str}/story", summary="Everything that happened to the task")
    async def story(self, services: GivenServices, caller: GivenCaller, task_id: TaskId) -> Story:
        """Oldest first."""
        events = await services.tasks.story(caller.tenant, task_id)
        return Story(
            task_id=task_id,
            events=tuple(
                StoryEvent(
                    at_s=each.at_s,
                    kind=each.kind,
                    text=each.text,
                    run=each.run,
                    worker=each.worker,
                    facts=each.facts,
                )
                for each in events
            ),
        )

    @get("/{task_id:str}/why", summary="Why the task is where it is")
    async def why(self, services: GivenServices, caller: GivenCaller, task_id: TaskId) -> Why:
        """Whole sentences."""
        return await services.tasks.why(caller.tenant, task_id)

    @post("/{task_id:str}/cancel", status_code=200, summary="Cancel the task; its process dies within a second")
    async def cancel(self, services: GivenServices, caller: GivenCaller, task_id: TaskId) -> TaskView:
        """The task, resolved as exception(canceled)."""
        return await services.tasks.cancel(caller, task_id)

    @post("/{task_id:str}/rerun", status_code=200, summary="Give a final task a new run")
    async def rerun(self, services: GivenServices, caller: GivenCaller, task_id: TaskId) -> TaskView:
        """The task, pending again."""
        return await services.tasks.rerun(caller, task_id)


class GroupDoor(Controller):
    """`/groups`"""

    path = "/groups"
    tags = ("tasks",)
    opt = {"area": "tasks"}  # noqa: RUF012 (Litestar copies it per handler)

    @post("/{group:str}/cancel", status_code=200, summary="Cancel all tasks of a group")
    async def cancel(self, services: GivenServices, caller: GivenCaller, group: FromPath[str]) -> TaskBatch:
        """The tasks that were canceled."""
        return TaskBatch(tasks=tuple(await services.tasks.cancel_group(caller, group)))


@get("/payload-schema", tags=["tasks"], opt={"area": "tasks"}, summary="What the payload of a task may hold")
async def payload_schema() -> dict[str, Any]:
    """JSON Schema (2020-12), the union of what this version's plugins take."""
    return SCHEMA.json_schema()


def page_rows(services: Services, limit: int) -> int:
    """Raises InvalidSpec for a page that is empty or larger than the limit."""
    if not 1 <= limit <= services.limits.page_rows:
        raise InvalidSpec(f"limit: must be between 1 and {services.limits.page_rows}", field="limit")
    return limit
