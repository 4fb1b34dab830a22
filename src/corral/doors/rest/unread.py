"""Bodies that nobody read to their end: what is left of one is read away before the answer.

A server that closes a connection on unread bytes resets it, and the answer is lost on its way. Nor is a small body
there because its head is: many clients send the two apart.
"""

import asyncio
from typing import Final

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

_MOST_BYTES: Final = 64 * 1024**2
_WITHIN_S: Final = 10.0


class UnreadBodies(ASGIMiddleware):
    """Reads up to 64 MiB, for up to 10 s; whoever sends more to somebody who does not want it is cut off."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if not _has_body(scope):
            await next_app(scope, receive, send)
            return
        more = True

        async def noted() -> ReceiveMessage:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message["more_body"]
            return message

        async def send_when_read(message: Message) -> None:
            if message["type"] == "http.response.start" and more:
                await _read_away(receive)
            await send(message)

        await next_app(scope, noted, send_when_read)


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


async def _read_away(receive: Receive) -> None:
    left = _MOST_BYTES
    try:
        async with asyncio.timeout(_WITHIN_S):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message["more_body"]:
                    return
                left -= len(message["body"])
    except TimeoutError:
        return
