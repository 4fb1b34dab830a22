"""Logs over REST: from any byte on, while they are written, across broken connections."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from corral.client.connection import Connection, segment
from corral.kernel.errors import SchedulerUnavailable

_IDLE_S: Final = 3600.0
_RETRIES: Final = 20
_RETRY_S: Final = 0.5


class Logs:
    """The logs of runs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(
        self, task_id: str, run: int, *, offset: int = 0, follow: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """The log's bytes from ``offset``; with ``follow`` until the run has ended.

        A broken connection is taken up again where it broke, for about ten seconds, then SchedulerUnavailable.
        Raises: NotFound. Cancellation: safe; close the iterator (``aclosing``) when leaving it early.
        """
        at, failures = offset, 0
        while True:
            try:
                async with aclosing(self._pieces(task_id, run, at, follow)) as pieces:
                    async for piece in pieces:
                        at += len(piece)
                        failures = 0
                        yield piece
            except SchedulerUnavailable:
                failures += 1
                if not follow or failures > _RETRIES:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _pieces(self, task_id: str, run: int, offset: int, follow: bool) -> AsyncGenerator[bytes, None]:
        query = {"offset": offset, "follow": 1 if follow else None}
        path = f"/tasks/{segment(task_id)}/runs/{run}/log"
        async with self._connection.stream("GET", path, query=query, idle_s=_IDLE_S) as body:
            async for piece in body.pieces():
                yield piece
