"""Routes: which worker a client may dial directly, for how many executions at once, and for how long.

A route is a promise of slots, kept until the client gives it back or it ends. The scheduler never sees what is sent
over it. State is in memory: after a restart, promises are forgotten and workers refuse what they have no room for.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from corral.fleet.machine import Candidate, place
from corral.fleet.service import Fleet
from corral.fleet.tokens import TTL_S, RouteClaims, SigningKey
from corral.kernel.clock import Clock
from corral.kernel.errors import InvalidSpec, NoFeasibleWorker, QueueFull


class _Key(msgspec.Struct, frozen=True):
    tenant: str
    root: str = ""


class _Pool(msgspec.Struct, frozen=True):
    key: _Key
    idle: int = 0
    busy: int = 0
    frozen: int = 0


class _Pools(msgspec.Struct, frozen=True):
    """As much of a worker's pools (``sandboxes.pool.PoolStatistics``) as placement needs."""

    pools: tuple[_Pool, ...] = ()


PURPOSES: Final = frozenset({"compile"})
_SLOTS_MAX: Final = 256
_ROUTES_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where to go.

    Attributes:
        slots: how many executions at once.
        certificate_fingerprint: SHA-256 of the certificate that must be shown there, hex.
        result_key: the public key that signs results there, 32 bytes in hex.
        lasts_s: for so many seconds from now on the token is good.
    """

    id: str
    worker_id: str
    address: str
    certificate_fingerprint: str
    result_key: str
    token: str
    slots: int
    lasts_s: float


@dataclass(frozen=True, slots=True)
class _Promise:
    tenant: str
    worker_id: str
    slots: int
    until_s: float


class Router:
    """See the module."""

    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        *,
        new_id: Callable[[], str],
        make_key: Callable[[], SigningKey] = SigningKey,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._new_id = new_id
        self._make_key = make_key
        self._key: SigningKey | None = None
        self._promises: dict[str, _Promise] = {}

    def route(
        self, tenant: str, *, image: str, purpose: str, slots: int = 1, avoid: Collection[str] = ()
    ) -> tuple[Route, ...]:
        """Promise up to ``slots`` slots, on as many workers as it takes; at least one.

        Raises:
            InvalidSpec: ``purpose`` or ``slots`` are none.
            NoFeasibleWorker: none is there that clients may dial, or all are full.
            QueueFull: too many routes are out.
        """
        if purpose not in PURPOSES:
            raise InvalidSpec(f'purpose: "{purpose[:40]}" is not one of {", ".join(sorted(PURPOSES))}', field="purpose")
        if not 1 <= slots <= _SLOTS_MAX:
            raise InvalidSpec(f"slots: {slots} is not between 1 and {_SLOTS_MAX}", field="slots")
        self._forget_old()
        if len(self._promises) >= _ROUTES_MAX:
            raise QueueFull(f"{_ROUTES_MAX} routes are out, the limit of this scheduler")
        # Workers tell digests, whatever their images are called.
        found = self._spread(tenant, image.rpartition("@")[2], slots, avoid)
        if not found:
            raise NoFeasibleWorker(
                "no worker that clients may dial has a free slot",
                cure="compile locally meanwhile, or add workers with [worker_door] listen and address",
            )
        return tuple(self._promise(tenant, image, purpose, worker_id, count) for worker_id, count in found.items())

    def release(self, tenant: str, route_ids: Iterable[str]) -> None:
        """The client is done with these; unknown ones and those of others are no error."""
        for route_id in route_ids:
            promise = self._promises.get(route_id)
            if promise is not None and promise.tenant == tenant:
                del self._promises[route_id]

    def promised(self) -> dict[str, int]:
        """Slots that are promised, by worker."""
        self._forget_old()
        return self._by_worker()

    def _spread(self, tenant: str, digest: str, slots: int, avoid: Collection[str]) -> dict[str, int]:
        candidates = {each.worker_id: each for each in self._candidates(tenant, digest)}
        found: dict[str, int] = {}
        for _ in range(slots):
            worker_id = place(candidates.values(), image=digest, avoid=avoid)
            if worker_id is None:
                break
            found[worker_id] = found.get(worker_id, 0) + 1
            chosen = candidates[worker_id]
            candidates[worker_id] = Candidate(
                worker_id=worker_id,
                slots=chosen.slots,
                busy=chosen.busy + 1,
                images=chosen.images,
                warm=chosen.warm,
            )
        return found

    def _candidates(self, tenant: str, digest: str) -> Iterable[Candidate]:
        promised = self._by_worker()
        for worker in self._fleet.dialable():
            state, registration = worker.state, worker.registration
            if state is None:
                continue
            worker_id = registration.worker_id
            yield Candidate(
                worker_id=worker_id,
                slots=registration.capacity.slots,
                busy=len(state.runs) + max(state.executions, promised.get(worker_id, 0)),
                images=frozenset(state.images) | frozenset(registration.images),
                warm=_is_warm(state.pools_json, tenant, digest),
            )

    def _promise(self, tenant: str, image: str, purpose: str, worker_id: str, slots: int) -> Route:
        if self._key is None:
            self._key = self._make_key()
            self._fleet.publish_route_key(self._key.public)
        now_s = self._clock.now_s()
        claims = RouteClaims(
            tenant=tenant,
            image=image,
            worker=worker_id,
            purpose=purpose,
            iat=now_s,
            exp=now_s + TTL_S,
            jti=self._new_id(),
        )
        self._promises[claims.jti] = _Promise(tenant, worker_id, slots, self._clock.monotonic_s() + TTL_S)
        registration = self._fleet.get(worker_id).registration
        return Route(
            id=claims.jti,
            worker_id=worker_id,
            address=registration.address,
            certificate_fingerprint=registration.certificate_fingerprint,
            result_key=registration.result_key,
            token=self._key.token(claims),
            slots=slots,
            lasts_s=TTL_S,
        )

    def _by_worker(self) -> dict[str, int]:
        promised: dict[str, int] = {}
        for promise in self._promises.values():
            promised[promise.worker_id] = promised.get(promise.worker_id, 0) + promise.slots
        return promised

    def _forget_old(self) -> None:
        now_s = self._clock.monotonic_s()
        self._promises = {name: each for name, each in self._promises.items() if each.until_s > now_s}


def _is_warm(pools_json: str, tenant: str, digest: str) -> bool:
    """True when sandboxes of this tenant, on the prepared image or on the worker's own root, are there."""
    try:
        pools = msgspec.json.decode(pools_json or "{}", type=_Pools).pools
    except msgspec.DecodeError:
        return False  # a worker of another version; a warm start is all that is lost
    folder = digest.replace(":", "-")
    return any(
        each.key.tenant == tenant
        and each.idle + each.busy + each.frozen > 0
        and (f"/{folder}/" in f"{each.key.root}/" if digest else not each.key.root)
        for each in pools
    )
