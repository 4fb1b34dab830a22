"""Actions: execute, come back, cancel, look. Their blobs travel through `/blobs`."""

from typing import Annotated

from litestar import Controller, delete, get, post
from litestar.params import FromQuery, PathParameter, QueryParameter

from corral.client.action_model import ActionView, ExecutionView
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.kernel.digest import Digest

DigestText = Annotated[str, PathParameter(description="Digest of the action: `sha256:<hex>-<size>` or `b3:…`")]
ExecutionId = Annotated[str, PathParameter(description="Id that an execution was answered with")]
WaitS = Annotated[float, QueryParameter(ge=0, description="How long to wait for the end, in seconds")]


class ActionDoor(Controller):
    """`/actions`"""

    path = "/actions"
    tags = ("actions",)
    opt = {"area": "actions"}  # noqa: RUF012 (Litestar copies it per handler)

    @post(
        "/{digest:str}/execute",
        status_code=200,
        summary="Execute an action, or find its result",
        description="The action, its command and its inputs are uploaded before, encoded as Bazel's remote execution "
        "API says. An equal action that runs already is joined.",
        opt={"reads": True},  # what it needs instead is asked for below
    )
    async def execute(
        self,
        services: GivenServices,
        caller: GivenCaller,
        digest: DigestText,
        skip_cache_lookup: FromQuery[bool] = False,
        priority: FromQuery[int] = 0,
        wait_s: WaitS = 0.0,
    ) -> ExecutionView:
        """Answers at the end, or after `wait_s` (at most the scheduler's) with where it stands."""
        caller.require("actions:execute")
        return await services.actions.execute(
            caller.tenant,
            Digest.parse(digest),
            skip_cache_lookup=skip_cache_lookup,
            priority=priority,
            wait_s=min(wait_s, services.limits.wait_s),
        )

    @get("/executions/{execution:str}", summary="Where an execution stands")
    async def wait(
        self, services: GivenServices, caller: GivenCaller, execution: ExecutionId, wait_s: WaitS = 0.0
    ) -> ExecutionView:
        """At its end, or after `wait_s`. One for which nobody asks for a while is canceled."""
        return await services.actions.wait(caller.tenant, execution, wait_s=min(wait_s, services.limits.wait_s))

    @delete("/executions/{execution:str}", status_code=204, summary="Cancel an execution", opt={"reads": True})
    async def cancel(self, services: GivenServices, caller: GivenCaller, execution: ExecutionId) -> None:
        """For everybody who shares it."""
        caller.require("actions:execute")
        await services.actions.cancel(caller.tenant, execution)

    @get("/{digest:str}", summary="What an action is, and its cached result")
    async def show(self, services: GivenServices, caller: GivenCaller, digest: DigestText) -> ActionView:
        """Also for an action of which only the result was stored."""
        return await services.actions.show(caller.tenant, Digest.parse(digest))
