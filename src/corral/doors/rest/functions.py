"""Functions: deploy, look, switch, split, roll back, scale, stop, remove, logs."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, post, put
from litestar.di import NamedDependency, Provide
from litestar.params import Body, FromPath, FromQuery, PathParameter, QueryParameter
from litestar.response import Stream

from corral.client.function_model import (
    ChangeAnswer,
    ChangeList,
    DeployAnswer,
    DeployRequest,
    FunctionList,
    FunctionView,
    LogPage,
    RollbackRequest,
    SplitRequest,
    SwitchRequest,
    TraceList,
)
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.services import Caller, FunctionDesk, Services
from corral.doors.rest.sse import EVENT_STREAM, NO_BUFFERING, comment, event, last_event_id
from corral.functions.machine import Command, Remove, RemoveRevision, SetScale, Start, Stop
from corral.functions.model import LogLine, Scale

Name = Annotated[str, PathParameter(description="Name of the function")]
Revision = Annotated[str, PathParameter(description="Name of the revision")]
Expected = Annotated[
    int | None, QueryParameter(name="if_version", description="Change only if the function is at this version")
]


@dataclass(frozen=True, slots=True)
class Turn:
    """A change of one function by its caller, if it is at the version that the caller saw."""

    desk: FunctionDesk
    caller: Caller
    name: str
    expected: int | None

    async def apply(self, command: Command) -> ChangeAnswer:
        """Carry it out."""
        return await self.desk.apply(self.caller, self.name, command, expected=self.expected)


def provide_turn(services: GivenServices, caller: GivenCaller, name: Name, if_version: Expected = None) -> Turn:
    """For handlers that change a function."""
    return Turn(services.functions, caller, name, if_version)


GivenTurn = NamedDependency[Turn]


class FunctionDoor(Controller):
    """`/functions`"""

    path = "/functions"
    dependencies = {"turn": Provide(provide_turn, sync_to_thread=False)}  # noqa: RUF012 (Litestar copies it per handler)
    tags = ("functions",)
    opt = {"area": "functions"}  # noqa: RUF012 (Litestar copies it per handler)

    @get(summary="The tenant's functions, by name")
    async def all(self, services: GivenServices, caller: GivenCaller) -> FunctionList:
        """With their revisions and instances."""
        return FunctionList(functions=tuple(await services.functions.list(caller.tenant)))

    @get("/{name:str}", summary="One function")
    async def one(self, services: GivenServices, caller: GivenCaller, name: Name) -> FunctionView:
        """With its revisions, their instances and counters."""
        return await services.functions.get(caller.tenant, name)

    @put(
        "/{name:str}/revisions/{revision:str}",
        status_code=200,
        summary="Deploy a revision",
        description="Checks and compiles the program on a worker first. The same content again changes nothing; other "
        "content under the same name is a conflict, because a revision never changes.",
    )
    async def deploy(
        self,
        services: GivenServices,
        caller: GivenCaller,
        name: Name,
        revision: Revision,
        data: Annotated[DeployRequest, Body(description="The program, by digest, and what it may use")],
        if_version: Expected = None,
    ) -> DeployAnswer:
        """The first revision of a new function becomes its default."""
        return await services.functions.deploy(caller, name, revision, data, expected=if_version)

    @post(
        "/{name:str}/switch",
        status_code=200,
        summary="Make a revision the default, or take the default from it",
        description="On: atomically this one gets everything. Off: a named successor does, or nobody; never others.",
    )
    async def switch(
        self, turn: GivenTurn, data: Annotated[SwitchRequest, Body(description="Which revision, and which way")]
    ) -> ChangeAnswer:
        """A revision without an instance gets one first, so that nobody waits."""
        return await turn.desk.switch(
            turn.caller,
            turn.name,
            data.revision,
            on=data.on,
            successor=data.successor,
            force=data.force,
            expected=turn.expected,
        )

    @put("/{name:str}/split", status_code=200, summary="Split the requests between revisions")
    async def split(
        self, turn: GivenTurn, data: Annotated[SplitRequest, Body(description="Whole percentages that sum to 100")]
    ) -> ChangeAnswer:
        """Replaces the split that was there."""
        return await turn.desk.split(turn.caller, turn.name, data.shares, expected=turn.expected)

    @post("/{name:str}/rollback", status_code=200, summary="Back to an earlier state of the history")
    async def rollback(
        self,
        turn: GivenTurn,
        data: Annotated[RollbackRequest, Body(description="Which version; none: the newest with another split")],
    ) -> ChangeAnswer:
        """Brings removed revisions back, and a removed function."""
        return await turn.desk.rollback(turn.caller, turn.name, data.version, expected=turn.expected)

    @put("/{name:str}/revisions/{revision:str}/scale", status_code=200, summary="How many instances it has")
    async def scale(
        self, turn: GivenTurn, revision: Revision, data: Annotated[Scale, Body(description="Bounds and the target")]
    ) -> ChangeAnswer:
        """Between `min` and `max`, by requests in flight."""
        return await turn.apply(SetScale(revision, data))

    @post("/{name:str}/revisions/{revision:str}/stop", status_code=200, summary="End its instances, and allow no more")
    async def stop(self, turn: GivenTurn, revision: Revision) -> ChangeAnswer:
        """Its part of the split stands, and is answered with 503; nobody is elected."""
        return await turn.apply(Stop(revision))

    @post("/{name:str}/revisions/{revision:str}/start", status_code=200, summary="Allow instances again")
    async def start(self, turn: GivenTurn, revision: Revision) -> ChangeAnswer:
        """After a stop, or after the breaker stopped it."""
        return await turn.apply(Start(revision))

    @delete("/{name:str}/revisions/{revision:str}", status_code=200, summary="Remove a revision")
    async def remove_revision(self, turn: GivenTurn, revision: Revision) -> ChangeAnswer:
        """Not while it gets requests."""
        return await turn.apply(RemoveRevision(revision))

    @delete("/{name:str}", status_code=200, summary="Remove a function with all its revisions")
    async def remove(self, turn: GivenTurn) -> ChangeAnswer:
        """Its history stays for a while, and a rollback brings it back."""
        return await turn.apply(Remove())

    @get("/{name:str}/history", summary="Every change, newest first")
    async def history(
        self,
        services: GivenServices,
        caller: GivenCaller,
        name: Name,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 50,
        before: Annotated[int, QueryParameter(ge=0, description="`next` of the page before")] = 0,
    ) -> ChangeList:
        """Of removed functions too."""
        return await services.functions.history(caller.tenant, name, limit=limit, before=before)

    @get("/{name:str}/logs", summary="What the function wrote")
    async def logs(
        self,
        services: GivenServices,
        caller: GivenCaller,
        name: Name,
        after: FromQuery[int] = -1,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 200,
        revision: FromQuery[str] = "",
        request_id: FromQuery[str] = "",
    ) -> LogPage:
        """Lines after `after`, or the newest."""
        lines = await services.functions.logs(
            caller.tenant, name, after=after, limit=limit, revision=revision, request_id=request_id
        )
        return LogPage(lines=tuple(lines))

    @get(
        "/{name:str}/traces",
        summary="What requests went through",
        description="Of requests whose caller sampled them (`traceparent`) or asked for a trace (`x-corral-trace: 1`).",
    )
    async def traces(
        self,
        services: GivenServices,
        caller: GivenCaller,
        name: Name,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 20,
        request_id: FromQuery[str] = "",
    ) -> TraceList:
        """The newest, or that of one request."""
        found = await services.functions.traces(caller.tenant, name, limit=limit, request_id=request_id)
        return TraceList(traces=tuple(found))

    @get(
        "/{name:str}/logs/events",
        summary="What the function writes, as server-sent events",
        description="Event ids are places in the log: a reader that reconnects with `Last-Event-ID` misses nothing.",
    )
    async def log_events(
        self,
        request: Request[Any, Any, Any],
        services: GivenServices,
        caller: GivenCaller,
        name: FromPath[str],
        after: FromQuery[int] = -1,
        revision: FromQuery[str] = "",
        request_id: FromQuery[str] = "",
    ) -> Stream:
        """Events `line`."""
        start = last_event_id(request, default=after)
        if start < 0:
            newest = await services.functions.logs(caller.tenant, name, after=-1, limit=1, revision="", request_id="")
            start = newest[-1].seq if newest else 0
        await services.functions.logs(caller.tenant, name, after=start, limit=1, revision="", request_id="")
        services.streams.check_room()
        batches = services.functions.follow(caller.tenant, name, after=start, revision=revision, request_id=request_id)
        return Stream(_line_events(services, batches), media_type=EVENT_STREAM, headers=NO_BUFFERING)


async def _line_events(services: Services, batches: AsyncIterator[Sequence[LogLine]]) -> AsyncGenerator[bytes, None]:
    with services.streams.writing():
        yield comment("log")
        async for batch in batches:
            if not batch:
                yield comment("still here")
            for line in batch:
                yield event("line", msgspec.json.encode(line), id_=str(line.seq))
