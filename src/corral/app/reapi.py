"""Fits the tenants to what the door for Bazel asks for."""

from collections.abc import Callable
from typing import Final

from corral.kernel.clock import Clock
from corral.kernel.errors import Unauthenticated
from corral.ledger.model import SecurityEvent
from corral.tenants.model import Principal
from corral.tenants.service import Tenants

_OPAQUE: Final = "a valid token or certificate is needed"


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
