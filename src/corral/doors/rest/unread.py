"""Bodies of refused requests: what is left of one is read away before the answer.

A server that closes a connection on unread bytes resets it, and the sentence that says why is lost on its way.
"""

import asyncio
from typing import Final

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

_SMALL_BYTES: Final = 65_536  # arrives in one piece with the head
_MOST_BYTES: Final = 64 * 1024**2
_WITHIN_S: Final = 10.0
_REFUSED: Final = 400


class UnreadBodies(ASGIMiddleware):
    """Reads up to 64 MiB, for up to 10 s; whoever sends more to somebody who does not want it is cut off."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if not _may_be_large(scope):
            await next_app(scope, receive, send)
            return
        more = True

        async def noted() -> ReceiveMessage:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message["more_body"]
            return message

        async def send_when_read(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= _REFUSED and more:
                await _read_away(receive)
            await send(message)

        await next_app(scope, noted, send_when_read)


def _may_be_large(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    return b"transfer-encoding" in headers or (length.isdigit() and int(length) > _SMALL_BYTES)


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
