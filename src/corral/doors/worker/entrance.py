"""Who may come in at a worker's door: whoever holds a token that the scheduler signed for this very call."""

from collections.abc import Callable
from typing import Final

from corral.fleet.tokens import Expected, RouteClaims, TokenRefused, key_of, verify
from corral.kernel.clock import Clock
from corral.kernel.concurrency import Signal
from corral.wire.server import Context
from corral.wire.sessions import session_token

PURPOSE: Final = "compile"
_KEY_WITHIN_S: Final = 3.0
_KEYS_MAX: Final = 2
_SEEN_MAX: Final = 1000


class Entrance:
    """Knows the scheduler's keys. ``on_refusal`` hears kind, actor and reason of every refusal."""

    def __init__(
        self, worker_id: str, clock: Clock, on_refusal: Callable[[str, str, str], None] = lambda kind, actor, why: None
    ) -> None:
        self._worker_id = worker_id
        self._clock = clock
        self._on_refusal = on_refusal
        self._keys: dict[str, bytes] = {}
        self._changed = Signal()
        self._seen: dict[str, RouteClaims] = {}

    def learn(self, public: bytes) -> None:
        """The scheduler signs with this key now; tokens of the one before still end by themselves."""
        name = public[:8].hex()
        if public and name not in self._keys:
            self._keys[name] = public
            while len(self._keys) > _KEYS_MAX:
                del self._keys[next(iter(self._keys))]
            self._changed.notify()

    async def admit(self, context: Context, *, tenant: str, image: str) -> RouteClaims:
        """The claims of the caller's token. Raises Unauthenticated, which never says why."""
        return await self.check(session_token(context), tenant=tenant, image=image)

    async def check(self, token: str, *, tenant: str, image: str) -> RouteClaims:
        """The claims of ``token``. Raises Unauthenticated. A key that is on its way is waited for."""
        now_s = self._clock.now_s()
        seen = self._seen.get(token)
        if seen is not None and now_s < seen.exp and (seen.tenant, seen.image) == (tenant, image):
            return seen  # a client shows one token many times
        try:
            public = await self._key(key_of(token))
            expected = Expected(worker=self._worker_id, purpose=PURPOSE, tenant=tenant, image=image)
            claims = verify(token, public, expected, now_s=now_s)
        except TokenRefused as refused:
            self._on_refusal("worker-token-invalid", tenant[:100], refused.reason)
            raise
        if len(self._seen) >= _SEEN_MAX:
            self._seen.clear()
        self._seen[token] = claims
        return claims

    async def _key(self, name: str) -> bytes:
        if name not in self._keys:
            await self._changed.wait_notified(within_s=_KEY_WITHIN_S)
        public = self._keys.get(name)
        if public is None:
            raise TokenRefused("signed by a scheduler that this worker does not know")
        return public
