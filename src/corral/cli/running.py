"""From a synchronous command to the asynchronous client, with one meaning of Ctrl-C."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from corral.client import Corral

T = TypeVar("T")


def with_client(url: str, work: Callable[[Corral], Awaitable[T]]) -> T:
    """Open a client, do the work, close it. Ctrl-C cancels the work and raises KeyboardInterrupt afterwards."""

    async def session() -> T:
        async with Corral(url) as corral:
            return await work(corral)

    return asyncio.run(session())
