"""``/cache/{tenant}/…`` as plain ASGI: one path, the methods that caches use, and WebDAV's beside them.

Not Litestar's handlers, because those know no PROPFIND and MKCOL; identities, error pages and request ids are REST's.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from litestar import Request, asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from corral.blobs.ports import BlobStore
from corral.doors.http_cache.names import EntryName, parse_name
from corral.doors.http_cache.service import Found, HttpCache
from corral.doors.http_cache.webdav import MEDIA_TYPE, http_date, multistatus
from corral.doors.rest.entrance import check_origin
from corral.doors.rest.problems import request_id
from corral.doors.rest.services import Caller, Identities
from corral.kernel.errors import CallerError, Refused

PREFIX: Final = "/cache"
_RANGE: Final = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
_ALLOWED: Final = "GET, HEAD, PUT, DELETE, PROPFIND, MKCOL, OPTIONS"
_READING: Final = frozenset({"GET", "HEAD", "PROPFIND", "OPTIONS"})
Headers = Sequence[tuple[str, str]]


class _Broken(Exception):
    """The client went away in the middle of its body."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One request, with whom it is from and what it is about."""

    request: Request[Any, Any, Any]
    receive: Receive
    send: Send
    tenant: str
    name: EntryName
    path: str

    async def answer(self, status: int, body: bytes = b"", *, headers: Headers = ()) -> None:
        """A short answer."""
        await self.begin(status, [*headers, ("content-length", str(len(body)))])
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def begin(self, status: int, headers: Headers) -> None:
        """The head of an answer."""
        told = [(name.encode(), value.encode()) for name, value in headers]
        await self.send({"type": "http.response.start", "status": status, "headers": told})


class HttpCacheDoor:
    """The ASGI application below ``/cache``."""

    def __init__(self, cache: HttpCache, blobs: BlobStore, identities: Identities, *, tenants: Collection[str]) -> None:
        """``tenants`` are all that there are: an administrator may use each of their caches, and makes no new one."""
        self._cache = cache
        self._blobs = blobs
        self._identities = identities
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises CorralError, which whoever mounts this answers as REST does."""
        request: Request[Any, Any, Any] = Request(scope, receive, send)
        method = str(scope.get("method", ""))
        path = unquote(scope["raw_path"].decode("latin-1"))  # "path" lost its prefix, and won a slash, on its way here
        tenant, _, rest = path.removeprefix(PREFIX).lstrip("/").partition("/")
        self._admit(request, tenant, reads=method in _READING)
        call = _Call(request, receive, send, tenant, parse_name(rest), path)
        match method:
            case "GET" | "HEAD":
                await self._get(call, body=method == "GET")
            case "PUT":
                await self._put(call)
            case "DELETE":
                await call.answer(204 if await self._cache.remove(tenant, call.name) else 404)
            case "PROPFIND":
                await self._describe(call)
            case "MKCOL":
                await call.answer(201)  # a directory is there as soon as something is in it, and before
            case "OPTIONS":
                await call.answer(200, headers=[("allow", _ALLOWED), ("dav", "1")])
            case _:
                raise CallerError(f"{method[:20]} is not possible on a cache", cure=f"use one of {_ALLOWED}")

    def _admit(self, request: Request[Any, Any, Any], tenant: str, *, reads: bool) -> None:
        """Raises Unauthenticated; Refused for another tenant's cache or a scope that is not granted."""
        if not self._identities.tokens_needed():
            check_origin(request)
        caller: Caller = self._identities.authenticate(
            _token(request.headers.get("authorization", "")),
            remote_is_loopback=_is_loopback(request.client.host if request.client else ""),
            request_id=request_id(request),
        )
        request.scope.setdefault("state", {})["caller"] = caller
        if not tenant or (tenant != caller.tenant and not (caller.admin and tenant in self._tenants)):
            raise Refused(f"the cache of \"{tenant[:100]}\" is not this token's tenant's")
        caller.require("blobs:read" if reads else "blobs:write")

    async def _get(self, call: _Call, *, body: bool) -> None:
        found = None if call.name.collection else await self._cache.find(call.tenant, call.name)
        if found is None:
            await call.answer(404)
            return
        size_bytes = found.digest.size_bytes
        headers = [
            ("content-type", "application/octet-stream"),
            ("x-content-type-options", "nosniff"),
            ("last-modified", http_date(found.stored_s)),
            ("etag", f'"{found.digest.hash}"'),
        ]
        part = _part(call.request.headers.get("range", ""), size_bytes)
        if part is None:
            await call.answer(416, headers=[("content-range", f"bytes */{size_bytes}")])
            return
        start, length = part
        if length != size_bytes:
            headers.append(("content-range", f"bytes {start}-{start + length - 1}/{size_bytes}"))
        await self._send(call, found, [*headers, ("content-length", str(length))], start, length, body=body)

    async def _send(self, call: _Call, found: Found, headers: Headers, start: int, length: int, *, body: bool) -> None:
        status = 200 if length == found.digest.size_bytes else 206
        if not body or not length:
            await call.begin(status, headers)
            await call.send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        begun, left = False, length
        async with aclosing(self._blobs.read(found.tenant, found.digest, offset=start, length=length)) as pieces:
            async for piece in pieces:
                if not begun:  # now it is sure that there is something to read
                    await call.begin(status, headers)
                    begun = True
                left -= len(piece)
                await call.send({"type": "http.response.body", "body": piece, "more_body": left > 0})

    async def _put(self, call: _Call) -> None:
        told = call.request.headers.get("content-length", "")
        size_bytes = int(told) if told.isascii() and told.isdigit() and len(told) < 19 else None
        async with aclosing(_body(call.receive)) as content:
            try:
                await self._cache.store(call.tenant, call.name, content, size_bytes=size_bytes)
                async for _ in content:
                    pass  # one that was there already is not read, and its sender must be able to send it to the end
            except _Broken:
                return  # nobody is there to hear it
        await call.answer(201)

    async def _describe(self, call: _Call) -> None:
        """PROPFIND: an entry, or a directory, which every name that ends in a slash is."""
        found = None if call.name.collection else await self._cache.find(call.tenant, call.name)
        if found is None and not call.name.collection:
            await call.answer(404)
            return
        told = multistatus(
            call.path,
            size_bytes=found.digest.size_bytes if found else None,
            modified_s=found.stored_s if found else 0.0,
        )
        await call.answer(207, told, headers=[("content-type", MEDIA_TYPE)])


async def _body(receive: Receive) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        message: Any = await receive()
        if message["type"] != "http.request":
            raise _Broken
        if body := message.get("body", b""):
            yield body
        more = bool(message.get("more_body", False))


def _token(header: str) -> str | None:
    """A bearer token, or the password of Basic, which is what URLs with ``user:password@`` give."""
    scheme, _, credentials = header.partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip()
        case "basic":
            try:
                decoded = base64.b64decode(credentials.strip(), validate=True).decode("utf-8")
            except (binascii.Error, UnicodeDecodeError):
                return None
            user, _, password = decoded.partition(":")
            return password or user
        case _:
            return None


def _part(header: str, size_bytes: int) -> tuple[int, int] | None:
    """Start and length of what is asked for; all of it without a range that we know; None for one beyond the end."""
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return 0, size_bytes
    start, end = int(match[1]), int(match[2]) if match[2] else size_bytes - 1
    if start >= size_bytes or end < start:
        return None
    return start, min(end, size_bytes - 1) - start + 1


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def mounted(door: HttpCacheDoor) -> ASGIRouteHandler:
    """The door as a part of the REST application."""

    async def cache(scope: Scope, receive: Receive, send: Send) -> None:
        await door(scope, receive, send)

    return asgi(PREFIX, is_mount=True, copy_scope=True)(cache)
