"""Logs of runs: plain bytes from any offset, finished or growing, and server-sent events for browsers."""

import codecs
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Final

import msgspec
from litestar import Controller, Request, get
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from corral.client.model import RunView
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.services import Caller, Services
from corral.doors.rest.sse import EVENT_STREAM, NO_BUFFERING, comment, event, last_event_id
from corral.kernel.errors import InvalidSpec, NotFound

_RANGE: Final = re.compile(r"bytes=(\d{1,18})-")

Offset = Annotated[int, QueryParameter(ge=0, description="First byte wanted; `Range: bytes=N-` means the same")]


class LogDoor(Controller):
    """`/tasks/{id}/runs/{run}/log`"""

    path = "/tasks/{task_id:str}/runs/{run:int}/log"
    tags = ("logs",)
    opt = {"area": "tasks"}  # noqa: RUF012 (Litestar copies it per handler)

    @get(
        summary="The log's bytes, from any offset",
        description="With `follow=1` the answer goes on until the run has ended. "
        "A connection that breaks instead of ending may be taken up at the offset reached.",
    )
    async def plain(
        self,
        request: Request[Any, Any, Any],
        services: GivenServices,
        caller: GivenCaller,
        task_id: FromPath[str],
        run: FromPath[int],
        offset: Offset = 0,
        follow: FromQuery[bool] = False,
    ) -> Stream:
        """Bytes exactly as the command wrote them (secrets masked), so escape codes are the reader's concern."""
        view = await _run(services, caller, task_id, run)
        services.streams.check_room()
        offset, status = _range(request, offset)
        pieces = services.logs.read(caller.tenant, task_id, view, offset=offset, follow=follow)
        return Stream(
            _held(services, pieces),
            media_type="text/plain; charset=utf-8",
            status_code=status,
            headers={**NO_BUFFERING, "x-content-type-options": "nosniff"},
        )

    @get("/events", summary="The log as server-sent events", description="Event ids are offsets: reconnecting works.")
    async def events(
        self,
        request: Request[Any, Any, Any],
        services: GivenServices,
        caller: GivenCaller,
        task_id: FromPath[str],
        run: FromPath[int],
        offset: Offset = 0,
    ) -> Stream:
        """Events ``log`` with ``{"text": …}``, then one ``end``."""
        view = await _run(services, caller, task_id, run)
        services.streams.check_room()
        start = last_event_id(request, default=offset)
        pieces = services.logs.read(caller.tenant, task_id, view, offset=start, follow=True)
        return Stream(_held(services, _as_events(pieces, start)), media_type=EVENT_STREAM, headers=NO_BUFFERING)


async def _run(services: Services, caller: Caller, task_id: str, run: int) -> RunView:
    task = await services.tasks.get(caller.tenant, task_id)
    for view in task.runs:
        if view.run == run:
            return view
    raise NotFound(f"{task_id} has no run {run}")


def _range(request: Request[Any, Any, Any], offset: int) -> tuple[int, int]:
    header = request.headers.get("range")
    if header is None:
        return offset, 200
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        raise InvalidSpec(f'Range: "{header[:50]}" is not supported; write "bytes=N-"', field="range")
    return int(match[1]), 200  # 206 needs the total, which a growing log does not have


async def _held(services: Services, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    with services.streams.writing():
        async with aclosing(_closable(pieces)) as source:
            async for piece in source:
                yield piece


async def _closable(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in pieces:
            yield piece
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


async def _as_events(pieces: AsyncIterator[bytes], offset: int) -> AsyncGenerator[bytes, None]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    yield comment("log")
    async for piece in _closable(pieces):
        offset += len(piece)
        text = decoder.decode(piece)
        held_back = len(decoder.getstate()[0])  # bytes of a character whose rest is still to come
        if text:
            yield event("log", msgspec.json.encode({"text": text}), id_=str(offset - held_back))
    if rest := decoder.decode(b"", final=True):
        yield event("log", msgspec.json.encode({"text": rest}), id_=str(offset))
    yield event("end", b"{}", id_=str(offset))
