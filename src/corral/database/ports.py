"""The port of a database backend: what each of the two dialects does for ``Database``."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


class Backend(Protocol):
    """Opened by its module's ``open_…`` context manager; used by many at once. The contract is that of Database."""

    async def read(self, query: Callable[[AsyncConnection], Awaitable[T]]) -> T: ...

    async def write(self, transaction: Callable[[AsyncConnection], Awaitable[T]]) -> T: ...
