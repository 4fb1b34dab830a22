"""Whom a worker's door turned away, on the way to the scheduler's ledger.

The caller hears one opaque sentence; why stands in the worker's log at once, and in the ledger as soon as the scheduler
can be told. While it cannot, the oldest that wait are dropped and counted.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn

import structlog

from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.kernel.errors import CorralError
from corral.ledger.model import SecurityEvent

COMPONENT: Final = "worker-door"
_WAITING_MAX: Final = 1000
_BATCH: Final = 100
_GATHER_S: Final = 0.2
_AGAIN_S: Final = 2.0
_log = structlog.get_logger("corral.door")


class Refusals:
    """Records refusals without waiting. ``tell`` brings some to the scheduler, or raises."""

    def __init__(self, clock: Clock, tell: Callable[[Sequence[SecurityEvent]], Awaitable[None]]) -> None:
        self._clock = clock
        self._tell = tell
        self._waiting: deque[SecurityEvent] = deque()
        self._dropped = 0
        self._arrived = Signal()

    def record_nowait(self, kind: str, tenant: str, reason: str) -> None:
        """Somebody who claims to be of ``tenant`` was turned away."""
        _log.error(kind, category="security", tenant=tenant, reason=reason)
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.popleft()
            self._dropped += 1
        at_s = self._clock.now_s()
        # Nobody proved the tenant, so it is told as what was claimed.
        self._waiting.append(
            SecurityEvent(at_s=at_s, component=COMPONENT, kind=kind, reason=reason, facts={"claimed_tenant": tenant})
        )
        self._arrived.notify()

    async def tell_forever(self) -> NoReturn:
        """Tell what arrives, again and again, until it is cancelled."""
        while True:
            if not self._waiting:
                await self._arrived.wait_notified(within_s=3600)
            await Signal().wait_notified(within_s=_GATHER_S)  # others may come
            batch = [self._waiting[number] for number in range(min(_BATCH, len(self._waiting)))]
            if not batch:
                continue
            dropped = self._dropped
            try:
                await self._tell([*batch, _told_of_dropped(dropped, self._clock.now_s())] if dropped else batch)
            except CorralError as error:
                _log.warning("refusals are not in the ledger yet", count=len(self._waiting), reason=error.message)
                await Signal().wait_notified(within_s=_AGAIN_S)
                continue
            self._dropped -= dropped
            told = {id(each) for each in batch}  # some may have been dropped meanwhile
            while self._waiting and id(self._waiting[0]) in told:
                self._waiting.popleft()


def _told_of_dropped(count: int, now_s: float) -> SecurityEvent:
    return SecurityEvent(
        at_s=now_s,
        component=COMPONENT,
        kind="events-dropped",
        reason=f"{count} refusals came while the scheduler could not be told; they stand in the worker's log only",
        facts={"count": count},
    )
