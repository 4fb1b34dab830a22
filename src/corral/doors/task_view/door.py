"""That interface's routes: ``/tasks``, ``/functions``, ``/revisions`` at the root; the services are those of REST."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response, Router, delete, get, post, put
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from corral.client.function_model import DeployRequest, FunctionView
from corral.doors.rest.entrance import authenticate
from corral.doors.rest.given import GivenCaller, GivenServices
from corral.doors.rest.problems import request_id
from corral.doors.rest.services import Caller, Services
from corral.doors.task_view.model import (
    NAMELESS,
    ErrResponse,
    FunctionRecord,
    TaskAnswer,
    TaskEvent,
    checked_task_id,
    defaults_of,
    find_task,
    records_of,
    task_of,
    tasks_of,
)
from corral.functions.machine import Stop
from corral.kernel.digest import Digest
from corral.kernel.errors import CallerError, CorralError, InvalidSpec, NotFound

_TOKEN_HEADER: Final = b"procyon_admin_token"
_AREA: Final = {"area": "functions"}
_log = structlog.get_logger("corral.task-view")
_decode_event: Final = msgspec.json.Decoder(TaskEvent).decode


def task_view_router() -> Router:
    """Everything of the door; the application that it is put into has the services."""
    return Router(
        "/",
        route_handlers=[
            add_task,
            list_tasks,
            get_task,
            stop_task,
            list_functions,
            list_defaults,
            switch_default,
        ],
        guards=[_authenticate],
        exception_handlers={CorralError: _on_error, HTTPException: _on_http_exception, Exception: _on_bug},
        include_in_schema=False,
    )


@post("/tasks", status_code=201, opt=_AREA)
async def add_task(request: Request[Any, Any, Any], services: GivenServices, caller: GivenCaller) -> TaskAnswer:
    """Deploy; the task can be seen from now on. 400 for a body that is wrong in any way."""
    event = _event(await request.body())
    name, revision = event.function_name, event.function_revision or NAMELESS
    module = await _module(services, caller, event)
    wanted = DeployRequest(module=str(module), default=True if event.default_revision else None)
    answer = await services.functions.deploy(caller, name, revision, wanted, expected=None)
    return task_of(answer.function, next(each for each in answer.function.revisions if each.name == revision))


@get("/tasks", opt=_AREA)
async def list_tasks(services: GivenServices, caller: GivenCaller) -> dict[str, TaskAnswer]:
    """All, by id."""
    return tasks_of(await services.functions.list(caller.tenant))


@get("/tasks/{task_id:str}", opt=_AREA)
async def get_task(services: GivenServices, caller: GivenCaller, task_id: FromPath[str]) -> TaskAnswer:
    """400 for what is no id, 404 for what is no task."""
    return task_of(*await _found(services, caller, task_id))


@delete("/tasks/{task_id:str}", status_code=204, opt=_AREA)
async def stop_task(services: GivenServices, caller: GivenCaller, task_id: FromPath[str]) -> None:
    """End it: no instances any more. It stays in the list, completed."""
    function, revision = await _found(services, caller, task_id)
    await services.functions.apply(caller, function.name, Stop(revision.name), expected=None)


@get("/functions", opt=_AREA)
async def list_functions(services: GivenServices, caller: GivenCaller) -> dict[str, FunctionRecord]:
    """All, by function and revision."""
    return records_of(await services.functions.list(caller.tenant))


@get("/revisions/default", opt=_AREA)
async def list_defaults(services: GivenServices, caller: GivenCaller) -> dict[str, FunctionRecord]:
    """The default of every function that has one."""
    return defaults_of(await services.functions.list(caller.tenant))


@put("/revisions/{function:str}/{revision:str}/default/{switch:str}", status_code=200, opt=_AREA)
async def switch_default(
    services: GivenServices,
    caller: GivenCaller,
    function: FromPath[str],
    revision: FromPath[str],
    switch: FromPath[str],
) -> Response[bytes]:
    """On: this one and no other. Off: this one no more, and nobody in its place. 400 for any other word."""
    if switch not in ("on", "off"):
        raise CallerError(f'"{switch[:50]}" is not a switch; write "on" or "off"')
    await services.functions.switch(
        caller, function, revision, on=switch == "on", successor="", force=False, expected=None
    )
    return Response(b"", status_code=200, media_type="text/plain")


def _event(body: bytes) -> TaskEvent:
    try:
        return _decode_event(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"the body is not a task: {error}") from error


async def _module(services: Services, caller: Caller, event: TaskEvent) -> Digest:
    if event.wasm_registry_url:
        return await services.functions.fetch(caller, event.wasm_registry_url)
    try:
        return Digest.parse(event.wasm_file_name)
    except InvalidSpec as error:
        raise CallerError(
            "the task names no program: WasmRegistryUrl is empty, and WasmFileName is not the digest of a stored blob"
        ) from error


async def _found(services: Services, caller: Caller, task_id: str) -> Any:
    wanted = checked_task_id(task_id)
    functions: Sequence[FunctionView] = await services.functions.list(caller.tenant)
    found = find_task(functions, wanted)
    if found is None:
        raise NotFound(f"there is no task {wanted}")
    return found


def _authenticate(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """As REST does; the older clients' header for a token is taken for ``Authorization``."""
    headers = connection.scope["headers"]
    token = next((value for name, value in headers if name.lower() == _TOKEN_HEADER), None)
    if token and not any(name == b"authorization" for name, _ in headers):
        scope = {**connection.scope, "headers": [*headers, (b"authorization", b"Bearer " + token)]}
        connection = ASGIConnection(scope)  # type: ignore[arg-type]
    authenticate(connection, handler)


def _on_error(request: Request[Any, Any, Any], error: CorralError) -> Response[bytes]:
    status = 400 if isinstance(error, InvalidSpec) else error.status
    text = f"{error.message}. {error.cure}" if error.cure else error.message
    return _response(status, text)


def _on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    return _on_bug(request, error) if error.status_code >= 500 else _response(error.status_code, error.detail)


def _on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    incident = request_id(request)
    _log.error("request failed", request_id=incident, path=request.url.path, exc_info=error)
    return _response(500, f"the scheduler failed on this request; its log knows more under {incident}")


def _response(status: int, message: str) -> Response[bytes]:
    content = msgspec.json.encode(ErrResponse(status=status, message=message))
    return Response(content, status_code=status, media_type="application/json")
