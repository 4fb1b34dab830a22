"""Every error leaves as problem+json, whatever raised it: our tree, Litestar's validation and routing, or a bug."""

import re
import secrets
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import (
    ClientException,
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)

from corral.client.errors import problem_of
from corral.client.model import Problem
from corral.doors.rest.services import Services
from corral.kernel.errors import CallerError, CorralError, InvalidSpec, NotFound, Refused, TooLarge
from corral.kernel.json import in_words

MEDIA_TYPE: Final = "application/problem+json"
_log = structlog.get_logger("corral.rest")
_FIELD: Final = re.compile("Object (contains unknown|missing required) field `(.*)`")
_SAYS: Final = {"contains unknown": "is not a known key", "missing required": "is required"}


def on_corral_error(request: Request[Any, Any, Any], error: CorralError) -> Response[bytes]:
    """An error that somebody raised on purpose."""
    foreign = bool(error.context.pop("foreign", False))  # another tenant's: the caller must not tell it from nobody's
    if foreign or isinstance(error, Refused):
        services: Services = request.app.state.services
        services.identities.refused(
            request.scope.get("state", {}).get("caller"),
            f"{error.message}: it is another tenant's" if foreign else error.message,
            request_id(request),
        )
    return _response(problem_of(error, request_id=request_id(request)))


def on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """An error that the web framework found before we were asked; its own failures are ours."""
    if error.status_code >= 500:
        return on_bug(request, error)
    return _response(problem_of(_ours(request, error), request_id=request_id(request)), status=_status(error))


def on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """What nobody expected: the caller gets an incident number, the log gets the trace."""
    incident = request_id(request)
    _log.error("request failed", request_id=incident, path=request.url.path, exc_info=error)
    return _response(
        Problem(
            type="urn:corral:error:internal",
            title="Internal Server Error",
            status=500,
            detail="the scheduler failed on this request",
            code="internal",
            cure=f'look for request_id "{incident}" in the scheduler\'s log',
            request_id=incident,
        )
    )


def request_id(request: Request[Any, Any, Any]) -> str:
    """The id of this request; a request that found no route never met the middleware that gives ids."""
    return str(request.scope.setdefault("state", {}).setdefault("request_id", f"req_{secrets.token_hex(8)}"))


def _ours(request: Request[Any, Any, Any], error: HTTPException) -> CorralError:
    if isinstance(error, MethodNotAllowedException):
        return CallerError(f"{request.method} is not possible on {request.url.path}", cure="see /schema")
    if isinstance(error, NotFoundException):
        return NotFound(f"there is nothing at {request.url.path}", cure="see /schema")
    if isinstance(error, ValidationException):
        mistakes = tuple(_mistake(each) for each in _extra(error)) or (error.detail,)
        return InvalidSpec("; ".join(mistakes), mistakes=mistakes)
    if error.status_code == TooLarge.status:
        return TooLarge("the request's body is larger than scheduler.http_limits.body_bytes allows")
    if isinstance(error, ClientException):
        return CallerError(error.detail)
    return CorralError(error.detail)


def _status(error: HTTPException) -> int:
    return InvalidSpec.status if isinstance(error, ValidationException) else error.status_code


def _extra(error: ValidationException) -> list[Any]:
    return list(error.extra) if isinstance(error.extra, list) else []


def _mistake(extra: Any) -> str:
    if not isinstance(extra, dict):
        return str(extra)
    message, key = str(extra.get("message", "")), str(extra.get("key", ""))
    text, _, where = message.partition(" - at `$.")
    place = where.rstrip("`") or ("" if key == "data" else key)
    if match := _FIELD.fullmatch(text):
        return f"{place + '.' if place else ''}{match[2]}: {_SAYS[match[1]]}"
    return f"{place or 'body'}: {in_words(text)}"


def _response(problem: Problem, *, status: int | None = None) -> Response[bytes]:
    code = status or problem.status
    headers = {"www-authenticate": "Bearer"} if code == 401 else {}
    if problem.retryable:
        headers["retry-after"] = "1"
    if code != problem.status:
        problem = msgspec.structs.replace(problem, status=code, title=HTTPStatus(code).phrase)
    return Response(msgspec.json.encode(problem), status_code=code, media_type=MEDIA_TYPE, headers=headers)
