"""One at a time for each key: how concurrent writers of one digest collapse into one."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Turns(Generic[Key]):
    """A lock per key that exists only while somebody holds it."""

    def __init__(self) -> None:
        self._busy: dict[Key, asyncio.Event] = {}

    def is_held(self, key: Key) -> bool:
        """Tell whether somebody holds ``key`` now."""
        return key in self._busy

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """Wait until nobody holds ``key``, then hold it. Cancellation: safe while waiting."""
        while (ended := self._busy.get(key)) is not None:
            await ended.wait()
        self._busy[key] = ended = asyncio.Event()
        try:
            yield
        finally:
            del self._busy[key]
            ended.set()
