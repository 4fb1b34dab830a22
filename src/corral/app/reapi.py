"""The door for Bazel, put together: where it listens, and the tenants as it asks for them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final

import msgspec
import structlog

from corral.doors.reapi.config import DEFAULT_ADDRESS, OFF
from corral.doors.reapi.services import Services
from corral.kernel.clock import Clock
from corral.kernel.errors import Conflict, Unauthenticated
from corral.ledger.model import SecurityEvent
from corral.tenants.model import Principal
from corral.tenants.service import Tenants
from corral.wire.address import join_address, split_address

_OPAQUE: Final = "a valid token or certificate is needed"
_log = structlog.get_logger("corral.reapi")


Serving = Callable[[Services], AbstractAsyncContextManager[int]]
"""Serves at ``reapi.address`` while a block runs; gives the port."""


@asynccontextmanager
async def open_reapi(services: Services, serving: Serving) -> AsyncIterator[str]:
    """Serve while the block runs; gives ``HOST:PORT``, or "" when the door stays closed.

    Raises: InvalidSpec, Conflict as ``doors.reapi.server.serving``; a default address that is taken is no error, so
    that a second Corral on one machine starts.
    """
    configured = services.config.address
    wanted = configured or DEFAULT_ADDRESS
    async with AsyncExitStack() as stack:
        address = ""
        if wanted != OFF:
            config = msgspec.structs.replace(services.config, address=wanted)
            try:
                port = await stack.enter_async_context(serving(replace(services, config=config)))
            except Conflict:
                if configured:
                    raise
            else:
                address = join_address(split_address(wanted)[0], port)
        if not (address or configured):
            _log.warning("the door for Bazel stays closed: its port is taken", address=wanted, setting="reapi.address")
        yield address


class ReapiIdentities:
    """Tokens and certificates to principals; refusals go to ``record``."""

    def __init__(self, tenants: Tenants, clock: Clock, record: Callable[[SecurityEvent], None]) -> None:
        self._tenants = tenants
        self._clock = clock
        self._record = record

    def authenticate(self, bearer: str | None, *, remote_is_loopback: bool, request_id: str) -> Principal:
        """Raises Unauthenticated; the tenants have told the ledger why."""
        return self._tenants.authenticate(bearer, remote_is_loopback=remote_is_loopback, request_id=request_id)

    def of_certificate(self, name: str, *, request_id: str) -> Principal:
        """The tenant of that name, with the scopes of its tokens. Raises Unauthenticated."""
        if name not in self._tenants.names():
            self._tell("certificate-unknown", f'the certificate is for "{name[:100]}", which is no tenant', request_id)
            raise Unauthenticated(_OPAQUE, cure="use a certificate whose common name is your tenant's name")
        return Principal(name=f"{name}/certificate", tenant=name, scopes=self._tenants.get(name).scopes)

    def tokens_needed(self) -> bool:
        """False when callers on this machine need none."""
        return self._tenants.tokens_needed()

    def may_act_for(self, caller: Principal, tenant: str) -> bool:
        """An administrator may use every tenant's instance."""
        return caller.admin and tenant in self._tenants.names()

    def refused(self, caller: Principal, reason: str, request_id: str) -> None:
        """Record that the door said no."""
        self._tell("request-refused", reason, request_id, tenant=caller.tenant, actor=caller.name)

    def _tell(self, kind: str, reason: str, request_id: str, *, tenant: str = "", actor: str = "") -> None:
        self._record(
            SecurityEvent(
                at_s=self._clock.now_s(),
                component="reapi",
                kind=kind,
                reason=reason,
                tenant=tenant,
                actor=actor,
                request_id=request_id,
            )
        )
