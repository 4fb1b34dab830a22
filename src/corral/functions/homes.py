"""Several schedulers on one database: what each conducts, so that a function is one function for all of them.

Workers are *at home* with the scheduler that they are connected to, and only that one conducts them. At every change,
and every ``functions.compare_s``, each scheduler publishes the instances that answer, where fronts of other workers
reach them (``engine.front.public``); what the others have becomes routes for its own fronts, and counts for
``scale.min`` and ``scale.max``. So that two do not both start, or both stop, an instance, they stand in an order (of
their names): each counts what those before it have. Nothing here decides for somebody else.

A scheduler that publishes no more is gone after ``functions.home_expires_s``. Its clock does not matter: whoever reads
watches ``beat`` change.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from corral.functions.model import FunctionKey, RevisionKey
from corral.functions.routing import Backend
from corral.kernel.clock import Clock

_FORGOTTEN_AFTER: Final = 10  # times home_expires_s


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that answers, and how fronts of other workers reach it."""

    key: RevisionKey
    backend: Backend


class Home(msgspec.Struct, frozen=True, kw_only=True):
    """What one scheduler conducts. ``beat`` grows with every publication."""

    scheduler: str
    beat: int
    instances: tuple[Settled, ...] = ()


class HomeStore(Protocol):
    """Where schedulers meet. Every method may raise StoreUnavailable."""

    async def publish(self, home: Home, *, changed: bool) -> None:
        """Replace what this scheduler published before; ``changed``, in more than its beat: tell the others at once."""
        ...

    async def homes(self) -> Sequence[Home]:
        """What all have published, this one too."""
        ...

    async def leave(self, schedulers: Iterable[str]) -> None:
        """They are gone."""
        ...


@dataclass(slots=True)
class _Seen:
    home: Home
    at_s: float


class Homes:
    """The others, as this scheduler sees them. ``exchange`` now and then; what it holds is as old as that."""

    def __init__(self, store: HomeStore, scheduler: str, clock: Clock, *, expires_s: float) -> None:
        self._store, self._scheduler, self._clock, self._expires_s = store, scheduler, clock, expires_s
        self._beat = 0
        self._told: tuple[Settled, ...] = ()
        self._seen: dict[str, _Seen] = {}
        self._before: Counter[RevisionKey] = Counter()
        self._backends: dict[RevisionKey, tuple[Backend, ...]] = {}

    async def exchange(self, instances: Iterable[Settled]) -> frozenset[FunctionKey]:
        """Publish ours and read theirs; the functions of which others have something else than before."""
        self._beat += 1
        telling = tuple(instances)
        home = Home(scheduler=self._scheduler, beat=self._beat, instances=telling)
        await self._store.publish(home, changed=telling != self._told)
        self._told = telling
        self._take(await self._store.homes())
        now_s = self._clock.monotonic_s()
        dead = [name for name, seen in self._seen.items() if now_s > seen.at_s + _FORGOTTEN_AFTER * self._expires_s]
        if dead:
            await self._store.leave(dead)
        return self._recount()

    async def leave(self) -> None:
        """This scheduler stops: the others need not wait to see it."""
        await self._store.leave([self._scheduler])

    def before(self, key: RevisionKey) -> int:
        """Instances of schedulers that come before this one."""
        return self._before[key]

    def backends(self, key: RevisionKey) -> tuple[Backend, ...]:
        """Instances of all others that fronts here can reach."""
        return self._backends.get(key, ())

    def _take(self, homes: Sequence[Home]) -> None:
        now_s, before = self._clock.monotonic_s(), self._seen
        self._seen = {home.scheduler: _Seen(home, now_s) for home in homes if home.scheduler != self._scheduler}
        for name, seen in self._seen.items():
            if name in before and before[name].home.beat == seen.home.beat:
                seen.at_s = before[name].at_s

    def _recount(self) -> frozenset[FunctionKey]:
        oldest_s = self._clock.monotonic_s() - self._expires_s
        living = [seen.home for seen in self._seen.values() if seen.at_s >= oldest_s]
        before = Counter(each.key for home in living if home.scheduler < self._scheduler for each in home.instances)
        backends: dict[RevisionKey, tuple[Backend, ...]] = {}
        for home in sorted(living, key=lambda each: each.scheduler):
            for each in home.instances:
                backends[each.key] = (*backends.get(each.key, ()), each.backend)
        changed = {
            key.function
            for key in {*before, *self._before, *backends, *self._backends}
            if before[key] != self._before[key] or backends.get(key) != self._backends.get(key)
        }
        self._before, self._backends = before, backends
        return frozenset(changed)
