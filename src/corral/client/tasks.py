"""Tasks over REST: submit, look, wait, cancel, run again."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from corral.client.connection import Connection, segment
from corral.client.model import RunView, Story, SubmitBatch, TaskBatch, TaskPage, TaskView, Why
from corral.kernel.errors import SchedulerUnavailable
from corral.kernel.ids import new_token
from corral.tasks.model import Phase, TaskDefinition

_POLL_S: Final = 20.0
_MARGIN_S: Final = 15.0


class Tasks:
    """The tasks of the caller's tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def submit(self, definition: TaskDefinition, *, idempotency_key: str = "") -> TaskView:
        """Queue one task.

        Repeating the call with the same ``idempotency_key`` gives the same task.
        Raises: InvalidSpec with every mistake; QueueFull; SchedulerUnavailable.
        """
        return (await self.submit_all((definition,), idempotency_key=idempotency_key))[0]

    async def submit_all(
        self, definitions: Sequence[TaskDefinition], *, ids: Sequence[str] = (), idempotency_key: str = ""
    ) -> tuple[TaskView, ...]:
        """Queue several tasks, all or none. A lost answer is retried once under the same key.

        With ``ids`` a task may depend on one before it in the same call.
        """
        return await self._submit_twice(SubmitBatch(tasks=tuple(definitions), ids=tuple(ids)), idempotency_key)

    async def submit_raw(self, body: Any, *, idempotency_key: str = "") -> tuple[TaskView, ...]:
        """Queue what a file says, one task or a batch, unchecked on this side: the scheduler lists all mistakes."""
        batch = body if isinstance(body, dict) and "tasks" in body else {"tasks": [body]}
        return await self._submit_twice(batch, idempotency_key)

    async def _submit_twice(self, batch: Any, idempotency_key: str) -> tuple[TaskView, ...]:
        key = idempotency_key or new_token()
        try:
            return await self._submit(batch, key)
        except SchedulerUnavailable as error:
            if error.cure.startswith("start one"):
                raise  # it never got there
            return await self._submit(batch, key)

    async def _submit(self, batch: Any, key: str) -> tuple[TaskView, ...]:
        answer = await self._connection.call(
            "POST", "/tasks", TaskBatch, body=batch, headers={"idempotency-key": key}, timeout_s=60.0
        )
        return answer.tasks

    async def payload_schema(self) -> dict[str, Any]:
        """JSON Schema of a task's payload, as the scheduler checks it."""
        return await self._connection.call("GET", "/payload-schema", dict[str, Any])

    async def get(self, task_id: str) -> TaskView:
        """One task. Raises NotFound."""
        return await self._connection.call("GET", f"/tasks/{segment(task_id)}", TaskView)

    async def page(
        self, *, phase: str = "", group: str = "", name: str = "", limit: int = 50, after: str = ""
    ) -> TaskPage:
        """A page of tasks, newest first; ``after`` is the ``next`` of the page before."""
        query = {"phase": phase, "group": group, "name": name, "limit": limit, "after": after}
        return await self._connection.call("GET", "/tasks", TaskPage, query=query)

    async def runs(self, task_id: str) -> tuple[RunView, ...]:
        """The task's runs, oldest first."""
        return (await self.get(task_id)).runs

    async def wait_changed(self, task: TaskView, *, within_s: float = _POLL_S) -> TaskView:
        """Wait until phase or runs differ from ``task``'s; the same again after ``within_s``. Cancellation: safe."""
        run = task.last_run
        query = {
            "wait_s": within_s,
            "known_phase": task.phase.value,
            "known_run": -1 if run is None else run.run,
            "known_started": str(run is not None and run.started_s is not None).lower(),
        }
        return await self._connection.call(
            "GET", f"/tasks/{segment(task.id)}", TaskView, query=query, timeout_s=within_s + _MARGIN_S
        )

    async def watch(self, task_id: str) -> AsyncIterator[TaskView]:
        """The task now, then after every change, until it is final."""
        task = await self.get(task_id)
        while True:
            yield task
            if task.phase.final:
                return
            seen = task
            while _mark(task) == _mark(seen):
                task = await self.wait_changed(seen)

    async def wait(self, task_id: str) -> TaskView:
        """Wait until the task is completed, failed or exception. Cancellation: safe; the task goes on."""
        task = await self.get(task_id)
        while not task.phase.final:
            task = await self.wait_changed(task)
        return task

    async def cancel(self, task_id: str) -> TaskView:
        """End the task as exception(canceled); its process dies within a second. A final task stays as it is."""
        return await self._connection.call("POST", f"/tasks/{segment(task_id)}/cancel", TaskView)

    async def cancel_group(self, group: str) -> TaskBatch:
        """Cancel all tasks of a group."""
        return await self._connection.call("POST", f"/groups/{segment(group)}/cancel", TaskBatch)

    async def rerun(self, task_id: str) -> TaskView:
        """Give a final task a new run. Raises Conflict when it is not final."""
        return await self._connection.call("POST", f"/tasks/{segment(task_id)}/rerun", TaskView)

    async def story(self, task_id: str) -> Story:
        """Everything that happened to the task."""
        return await self._connection.call("GET", f"/tasks/{segment(task_id)}/story", Story)

    async def why(self, task_id: str) -> Why:
        """Why the task is where it is."""
        return await self._connection.call("GET", f"/tasks/{segment(task_id)}/why", Why)


def _mark(task: TaskView) -> tuple[Phase, int, bool]:
    run = task.last_run
    return (task.phase, len(task.runs), run is not None and run.started_s is not None)
