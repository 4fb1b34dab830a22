"""What the door stands on: small Protocols that name exactly what it calls, and the bundle of them."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from corral.actions.model import ExecutionUpdate
from corral.actions.ports import ActionCache
from corral.blobs.ports import BlobStore
from corral.doors.reapi.config import ReapiConfig
from corral.kernel.clock import Clock
from corral.kernel.digest import Digest
from corral.tenants.model import Principal


class Identities(Protocol):
    """Who calls."""

    def authenticate(self, bearer: str | None, *, remote_is_loopback: bool, request_id: str) -> Principal:
        """The principal of a token. Raises Unauthenticated, after recording a security event."""
        ...

    def of_certificate(self, name: str, *, request_id: str) -> Principal:
        """The tenant that a verified client certificate names. Raises Unauthenticated, recorded too."""
        ...

    def tokens_needed(self) -> bool:
        """False when callers on this machine need none."""
        ...

    def may_act_for(self, caller: Principal, tenant: str) -> bool:
        """Whether ``tenant``, which is not the caller's own, is one that an administrator may stand in for."""
        ...

    def refused(self, caller: Principal, reason: str, request_id: str) -> None:
        """Record that the door said no to somebody it knows."""
        ...


class Actions(Protocol):
    """Executions; see ``actions.service.ActionService``."""

    def execute(
        self, tenant: str, action: Digest, *, skip_cache_lookup: bool = False, priority: int = 0
    ) -> AsyncGenerator[ExecutionUpdate, None]: ...

    def wait(self, tenant: str, execution: str) -> AsyncGenerator[ExecutionUpdate, None]: ...

    async def cancel(self, tenant: str, execution: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the door needs besides executions, put together by the composition root."""

    identities: Identities
    blobs: BlobStore
    cache: ActionCache
    clock: Clock
    blob_bytes: int
    config: ReapiConfig
