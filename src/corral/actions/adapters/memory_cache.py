"""Results that were asked for lately, in memory, in front of another action cache."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from corral.actions.model import StoredResult
from corral.actions.ports import ActionCache
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest

_PER_NAME_BYTES: Final = 200
_PER_RESULT_BYTES: Final = 400


@dataclass(slots=True)
class _Remembered:
    result: StoredResult
    until_s: float
    weight: int


class RememberedResults:
    """See ``ports.ActionCache``. A hit is answered from memory for ``fresh_s`` after the inner cache has looked: its
    blobs were marked as used then, and no store evicts what was used so recently. Another scheduler's update or
    removal is noticed after ``fresh_s``."""

    def __init__(self, inner: ActionCache, clock: Clock, *, total_bytes: int, fresh_s: float) -> None:
        self._inner = inner
        self._clock = clock
        self._total_bytes = total_bytes
        self._fresh_s = fresh_s
        self._held: OrderedDict[tuple[str, Digest], _Remembered] = OrderedDict()
        self._held_bytes = 0

    async def get(self, tenant: str, action: Digest) -> StoredResult | None:
        key = (tenant, action)
        held = self._held.get(key)
        if held is not None and self._clock.monotonic_s() < held.until_s:
            self._held.move_to_end(key)
            return held.result
        looked_s = self._clock.monotonic_s()
        found = await self._inner.get(tenant, action)
        self._forget(key)
        if found is not None:
            self._remember(key, found, looked_s)
        return found

    async def update(self, tenant: str, action: Digest, result: StoredResult) -> None:
        self._forget((tenant, action))
        await self._inner.update(tenant, action, result)
        self._forget((tenant, action))  # what a concurrent ``get`` may have remembered meanwhile

    async def remove(self, tenant: str, action: Digest) -> None:
        self._forget((tenant, action))
        await self._inner.remove(tenant, action)
        self._forget((tenant, action))

    def forget(self, tenant: str, action: Digest) -> None:
        """Another result was stored behind our back."""
        self._forget((tenant, action))

    def _remember(self, key: tuple[str, Digest], found: StoredResult, looked_s: float) -> None:
        weight = len(found.encoded) + len(found.named) * _PER_NAME_BYTES + _PER_RESULT_BYTES
        if weight > self._total_bytes:
            return
        self._held[key] = _Remembered(found, looked_s + self._fresh_s, weight)
        self._held_bytes += weight
        while self._held_bytes > self._total_bytes:
            self._held_bytes -= self._held.popitem(last=False)[1].weight

    def _forget(self, key: tuple[str, Digest]) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._held_bytes -= held.weight
