"""How many executions of clients run at once; who counts them elsewhere hears when all have ended."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from corral.kernel.errors import PoolExhausted

IDLE_AFTER_S: Final = 0.5
"""So long all places must have been free: between two compiles of one build they are free for less."""


class Places:
    """``count`` places for clients on one worker. For the event loop alone."""

    def __init__(self, count: int, worker_id: str, *, on_idle: Callable[[], None] = lambda: None) -> None:
        """``on_idle`` is called when all have been free for ``IDLE_AFTER_S``; it must not wait."""
        self._count = count
        self._worker_id = worker_id
        self._on_idle = on_idle
        self._timer: asyncio.TimerHandle | None = None
        self.busy = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A place while the block runs. Raises PoolExhausted when all are taken."""
        if self.busy >= self._count:
            raise PoolExhausted(f"all {self._count} places for clients on {self._worker_id} are taken")
        self.busy += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            yield
        finally:
            self.busy -= 1
            if not self.busy:
                self._timer = asyncio.get_running_loop().call_later(IDLE_AFTER_S, self._idle)

    def _idle(self) -> None:
        self._timer = None
        self._on_idle()
