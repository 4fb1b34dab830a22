"""What every request passes: an id, the check of its origin, and the question who asks."""

import ipaddress
import re
import secrets
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.exceptions import SerializationException
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from corral.doors.rest.problems import request_id
from corral.doors.rest.services import Caller, Services
from corral.kernel.errors import CallerError, InvalidSpec, Refused
from corral.kernel.json import MALFORMED, why_malformed
from corral.tasks.payload_decode import unknown_key

_OF_TENANTS: Final = ("tasks", "blobs", "actions", "functions")
_ACCEPTED_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class JsonRequest(Request[Any, Any, Any]):
    """A request whose body may be any bytes: what is no JSON is the caller's mistake, never ours."""

    async def json(self) -> Any:
        try:
            return await super().json()
        except SerializationException as error:
            raise CallerError(f"the body is not JSON: {why_malformed(error.__cause__ or error)}") from error
        except MALFORMED as error:
            raise CallerError(f"the body is not JSON: {why_malformed(error)}") from error


class RequestIds(ASGIMiddleware):
    """Gives every request an id (the caller's own ``x-request-id`` when it is sane) and answers with it."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        chosen = given if _ACCEPTED_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = chosen

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", chosen.encode())]
            await send(message)

        await next_app(scope, receive, send_with_id)


def authenticate(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard of the whole API: finds out who asks and keeps it for the handler.

    Raises: Unauthenticated; Refused for a browser page of another origin, which must not use a loopback door that
    asks for no token (DNS rebinding and cross-site requests come with a foreign Host or Origin).
    """
    services: Services = connection.app.state.services
    if not services.identities.tokens_needed():
        check_origin(connection)
    header = connection.headers.get("authorization", "")
    scheme, _, credentials = header.partition(" ")
    caller = services.identities.authenticate(
        credentials.strip() if scheme.lower() == "bearer" else None,
        remote_is_loopback=_is_loopback(connection.client.host if connection.client else ""),
        request_id=str(connection.scope.get("state", {}).get("request_id", "")),
    )
    connection.state["caller"] = caller
    if area := handler.opt.get("area"):
        reads = connection.scope.get("method") in ("GET", "HEAD") or handler.opt.get("reads")
        caller.require(f"{area}:{'read' if reads else 'write'}")
        if area in _OF_TENANTS and not caller.tenant:
            raise InvalidSpec(
                "an administrator's token belongs to no tenant, so it has no tasks, logs, artifacts and blobs",
                cure="use a tenant's token; an administrator's is for workers, audit rows and security events",
            )


def known_query(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard of the whole API: a misspelt parameter would otherwise be left out of the question without a word.

    Raises InvalidSpec that names every key of the query that the route does not have.
    """
    known = _query_names(handler)
    mistakes = tuple(unknown_key("", key, known) for key in dict.fromkeys(connection.query_params) if key not in known)
    if mistakes:
        raise InvalidSpec(mistakes[0], mistakes=mistakes, field="query")


@cache
def _query_names(handler: BaseRouteHandler) -> frozenset[str]:
    given = handler.resolve_dependencies()
    names: set[str] = set()
    asking = [handler.parsed_fn_signature]
    while asking:
        for name, each in asking.pop().parameters.items():
            if isinstance(each.kwarg_definition, QueryParameter):
                names.add(each.kwarg_definition.name or name)
            elif name in given:  # what is provided to the handler may ask the query itself
                asking.append(given[name].parsed_fn_signature)
    return frozenset(names)


def provide_caller(request: Request[Any, Any, Any]) -> Caller:
    """The caller that the guard found."""
    caller: Caller = request.state["caller"]
    return caller


def provide_services(request: Request[Any, Any, Any]) -> Services:
    """What the composition root put together."""
    services: Services = request.app.state.services
    return services


def must_be_admin(caller: Caller, request: Request[Any, Any, Any]) -> None:
    """Raises Refused for a caller who may not see or steer the whole fleet."""
    if not caller.admin:
        raise Refused("this needs an administrator's token", request_id=request_id(request))


def check_origin(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    """Raises Refused for a foreign Host or Origin; for doors that ask for no token."""
    host = connection.headers.get("host", "")
    if not _is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise Refused(
            f'the Host header "{host[:100]}" names another machine; without tokens only loopback names are served',
            cure="use http://127.0.0.1, or configure tenants with tokens",
        )
    origin = connection.headers.get("origin", "")
    if origin and urlsplit(origin).netloc != host:
        raise Refused(f'a page of "{origin[:100]}" may not use this scheduler')


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
