"""Events of tasks as they happen, as server-sent events."""

from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec
from litestar import Controller, Request, get
from litestar.params import FromQuery
from litestar.response import Stream

from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.services import Services
from corral.doors.rest.sse import EVENT_STREAM, NO_BUFFERING, comment, event, last_event_id

_BATCH: Final = 500
_KEEP_ALIVE_S: Final = 15.0


class EventDoor(Controller):
    """`/events`"""

    path = "/events"
    tags = ("tasks",)
    opt = {"area": "tasks"}  # noqa: RUF012 (Litestar copies it per handler)

    @get(
        summary="Task events as they happen",
        description="Of one task, of a group, or of the whole tenant. Event ids are places in the stream: a reader "
        "that reconnects with `Last-Event-ID` misses nothing. `after=0` starts with everything remembered.",
    )
    async def stream(
        self,
        request: Request[Any, Any, Any],
        services: GivenServices,
        caller: GivenCaller,
        task_id: FromQuery[str] = "",
        group: FromQuery[str] = "",
        after: FromQuery[int] = -1,
    ) -> Stream:
        """Events named by their kind, with the event as JSON."""
        if task_id:
            await services.tasks.get(caller.tenant, task_id)
        services.streams.check_room()
        start = last_event_id(request, default=after)
        if start < 0:
            start = await services.tasks.last_seq(caller.tenant)
        body = _events(services, caller.tenant, start, task_id, group)
        return Stream(body, media_type=EVENT_STREAM, headers=NO_BUFFERING)


async def _events(services: Services, tenant: str, after: int, task_id: str, group: str) -> AsyncGenerator[bytes, None]:
    with services.streams.writing():
        yield comment("events")
        quiet_since_s = services.clock.monotonic_s()
        while True:
            batch = await services.tasks.events(tenant, after_seq=after, task_id=task_id, group=group, limit=_BATCH)
            for each in batch:
                after = each.seq
                yield event(each.kind, msgspec.json.encode(each), id_=str(each.seq))
            now_s = services.clock.monotonic_s()
            if batch:
                quiet_since_s = now_s
            elif now_s - quiet_since_s >= _KEEP_ALIVE_S:
                quiet_since_s = now_s
                yield comment("still here")
            if len(batch) < _BATCH:
                await services.tasks.wait_changed(within_s=_KEEP_ALIVE_S)
