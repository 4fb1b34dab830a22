"""Functions over REST, and calls of them at a front."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx
import msgspec

from corral.client.connection import Connection, segment
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
from corral.functions.checks import check_function_name, check_revision_name
from corral.functions.model import LogLine, Scale, Share
from corral.functions.traces import Trace
from corral.kernel.errors import NoFeasibleWorker, SchedulerUnavailable

_DEPLOY_S: Final = 180.0
_TURN_S: Final = 60.0
_IDLE_S: Final = 60.0
_RETRIES: Final = 20
_RETRY_S: Final = 0.5
_TRACE_LOOK_S: Final = 0.1
_EVENT_MAX: Final = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswer:
    """What a function answered; an error status is an answer too.

    ``revision`` and ``instance`` are who answered, "" when nobody did; ``cold`` when an instance had to be started.
    """

    status: int
    headers: Mapping[str, str]
    body: AsyncIterable[bytes]
    took_s: float
    revision: str
    instance: str
    cold: bool
    request_id: str


class Functions:
    """Deploy, look, change, call. ``if_version``: change only if the function is at this version, else Conflict."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self) -> tuple[FunctionView, ...]:
        """All of the tenant, by name."""
        return (await self._connection.call("GET", "/functions", FunctionList)).functions

    async def get(self, name: str) -> FunctionView:
        """One function with its revisions and instances. Raises NotFound."""
        return await self._connection.call("GET", f"/functions/{segment(name)}", FunctionView)

    async def deploy(
        self, name: str, revision: str, request: DeployRequest, *, if_version: int | None = None
    ) -> DeployAnswer:
        """Deploy a program that is stored already (``uploads.file``). The same again changes nothing.

        Raises: InvalidSpec for a bad program or name; Conflict for a revision with other content; NoFeasibleWorker.
        """
        check_function_name(name)  # a name with a slash is no part of a path, and nobody else would hear of it
        check_revision_name(revision)
        return await self._connection.call(
            "PUT",
            _revision(name, revision),
            DeployAnswer,
            body=request,
            query={"if_version": if_version},
            timeout_s=_DEPLOY_S,
        )

    async def switch_on(
        self, name: str, revision: str, *, force: bool = False, if_version: int | None = None
    ) -> ChangeAnswer:
        """Make it the default. Raises NotFound, Conflict."""
        return await self._change("POST", name, "switch", SwitchRequest(revision=revision, force=force), if_version)

    async def switch_off(
        self, name: str, revision: str, *, successor: str = "", if_version: int | None = None
    ) -> ChangeAnswer:
        """Take the default from it. Raises NotFound, Conflict."""
        body = SwitchRequest(revision=revision, on=False, successor=successor)
        return await self._change("POST", name, "switch", body, if_version)

    async def split(self, name: str, shares: Sequence[Share], *, if_version: int | None = None) -> ChangeAnswer:
        """Give each its part. Raises InvalidSpec, NotFound, Conflict."""
        return await self._change("PUT", name, "split", SplitRequest(shares=tuple(shares)), if_version)

    async def rollback(self, name: str, version: int | None = None, *, if_version: int | None = None) -> ChangeAnswer:
        """Back to the state after ``version``. Raises NotFound, Conflict."""
        return await self._change("POST", name, "rollback", RollbackRequest(version=version), if_version)

    async def scale(self, name: str, revision: str, scale: Scale, *, if_version: int | None = None) -> ChangeAnswer:
        """How many instances. Raises InvalidSpec, NotFound."""
        return await self._change("PUT", name, f"revisions/{segment(revision)}/scale", scale, if_version)

    async def stop(self, name: str, revision: str) -> ChangeAnswer:
        """No instances any more. Raises NotFound."""
        return await self._change("POST", name, f"revisions/{segment(revision)}/stop", None, None)

    async def start(self, name: str, revision: str) -> ChangeAnswer:
        """Instances again. Raises NotFound."""
        return await self._change("POST", name, f"revisions/{segment(revision)}/start", None, None)

    async def remove(self, name: str, revision: str = "") -> ChangeAnswer:
        """The revision, or the function with all of them. Raises NotFound; Conflict while it gets requests."""
        return await self._change("DELETE", name, f"revisions/{segment(revision)}" if revision else "", None, None)

    async def history(self, name: str, *, limit: int = 50, before: int = 0) -> ChangeList:
        """Newest first. Raises NotFound."""
        query = {"limit": limit, "before": before}
        return await self._connection.call("GET", f"/functions/{segment(name)}/history", ChangeList, query=query)

    async def logs(
        self, name: str, *, after: int = -1, limit: int = 200, revision: str = "", request_id: str = ""
    ) -> tuple[LogLine, ...]:
        """Lines after ``after``, or the newest, oldest first. Raises NotFound."""
        query = {"after": after, "limit": limit, "revision": revision, "request_id": request_id}
        return (await self._connection.call("GET", f"/functions/{segment(name)}/logs", LogPage, query=query)).lines

    async def traces(self, name: str, *, limit: int = 20, request_id: str = "") -> tuple[Trace, ...]:
        """Of requests that were traced, the newest, oldest first. Raises NotFound."""
        query = {"limit": limit, "request_id": request_id}
        path = f"/functions/{segment(name)}/traces"
        return (await self._connection.call("GET", path, TraceList, query=query)).traces

    async def wait_trace(self, name: str, request_id: str, *, within_s: float = 5.0) -> Trace | None:
        """That of one request, which comes a moment after its answer; None when it did not come in time."""
        for _ in range(max(1, int(within_s / _TRACE_LOOK_S))):
            if found := await self.traces(name, request_id=request_id, limit=1):
                return found[0]
            await asyncio.sleep(_TRACE_LOOK_S)
        return None

    async def follow_logs(
        self, name: str, *, after: int = -1, revision: str = "", request_id: str = ""
    ) -> AsyncGenerator[LogLine, None]:
        """Lines as they come, across broken connections, for ever. Raises NotFound."""
        failures = 0
        while True:
            try:
                query = {"after": after, "revision": revision, "request_id": request_id}
                async with aclosing(self._line_events(name, query)) as lines:
                    async for line in lines:
                        after, failures = line.seq, 0
                        yield line
                failures += 1
            except SchedulerUnavailable:
                failures += 1
                if failures > _RETRIES:
                    raise
            await asyncio.sleep(_RETRY_S)

    @asynccontextmanager
    async def call(
        self,
        function: FunctionView,
        *,
        revision: str = "",
        path: str = "/",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        timeout_s: float = 60.0,
    ) -> "AsyncGenerator[CallAnswer, None]":
        """Send a request to the function's front; the body of the answer is read inside the block.

        Raises: NoFeasibleWorker when no front is connected; SchedulerUnavailable when it does not answer.
        """
        if not function.urls:
            why = function.why_no_url or "no worker that hosts functions is connected"
            raise NoFeasibleWorker(f'function "{function.name}" cannot be called: {why}', cure="`corral worker list`")
        url = function.urls[0] + (f"@{segment(revision)}" if revision else "") + "/" + path.lstrip("/")
        secure = url.startswith("https:")  # reading the certificates of all the world takes 20 ms
        async with httpx.AsyncClient(timeout=timeout_s, trust_env=False, verify=secure) as http:
            started_s = time.perf_counter()
            try:
                async with http.stream(method, url, headers=dict(headers or {}), content=content) as response:
                    given = response.headers
                    yield CallAnswer(
                        status=response.status_code,
                        headers=given,
                        body=response.aiter_bytes(),
                        took_s=time.perf_counter() - started_s,
                        revision=given.get("x-corral-revision", ""),
                        instance=given.get("x-corral-instance", ""),
                        cold=given.get("x-corral-start", "") == "cold",
                        request_id=given.get("x-request-id", ""),
                    )
            except httpx.HTTPError as error:
                raise SchedulerUnavailable(
                    f"the front at {function.urls[0]} does not answer: {str(error) or type(error).__name__}",
                    cure="`corral worker list` shows workers",
                ) from error

    async def _change(self, method: str, name: str, what: str, body: object, if_version: int | None) -> ChangeAnswer:
        path = f"/functions/{segment(name)}" + (f"/{what}" if what else "")
        query = {"if_version": if_version}
        return await self._connection.call(method, path, ChangeAnswer, body=body, query=query, timeout_s=_TURN_S)

    async def _line_events(self, name: str, query: Mapping[str, object]) -> AsyncGenerator[LogLine, None]:
        path = f"/functions/{segment(name)}/logs/events"
        async with self._connection.stream("GET", path, query=query, idle_s=_IDLE_S) as body:
            rest = b""
            async for piece in body.pieces():
                *events, rest = (rest + piece).split(b"\n\n")
                for each in events:
                    for line in each.split(b"\n"):
                        if line.startswith(b"data: "):
                            yield msgspec.json.decode(line[6:], type=LogLine)
                if len(rest) > _EVENT_MAX:
                    raise SchedulerUnavailable("the scheduler sent an event that is too long")


def _revision(name: str, revision: str) -> str:
    return f"/functions/{segment(name)}/revisions/{segment(revision)}"
