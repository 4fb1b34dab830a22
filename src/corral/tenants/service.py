"""Who asks? Tokens to principals; everyone who is turned away hears the same sentence."""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Final, NoReturn

from corral.kernel.errors import InvalidSpec, NotFound, Unauthenticated
from corral.tenants.model import DEFAULT_TENANT, AccessConfig, AccessRefusal, Principal, Tenant, TenantConfig
from corral.tenants.reading import Reading
from corral.tenants.tokens import find_hash, fingerprint

_OPAQUE: Final = "a valid token is needed"
_WORKER_CURE: Final = "Give the worker one of the scheduler's access.worker_tokens: join.token, or CORRAL_JOIN__TOKEN."
_CURE: Final = "Set CORRAL_TOKEN, or send the header `Authorization: Bearer <token>`."


class Tenants:
    """The configured tenants and their tokens; immutable. ``refused`` is told of everyone who is turned away."""

    def __init__(
        self,
        tenants: Mapping[str, TenantConfig],
        access: AccessConfig,
        *,
        refused: Callable[[AccessRefusal], None],
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Raises InvalidSpec whose ``mistakes`` are all that is wrong with the configuration."""
        reading = Reading(tenants, access, os.environ if env is None else env)
        if reading.mistakes:
            raise InvalidSpec(
                "; ".join(reading.mistakes[:3]) + (" …" if len(reading.mistakes) > 3 else ""),
                mistakes=tuple(reading.mistakes),
            )
        self._tenants = reading.tenants
        self._principals = {each: self._tenants_principal(each, name) for each, name in reading.tenant_tokens.items()}
        self._principals.update({each: self._admin_principal(each) for each in reading.admin_tokens})
        self._worker_tokens = reading.worker_tokens
        self._refused = refused

    def authenticate(self, bearer: str | None, *, remote_is_loopback: bool, request_id: str = "") -> Principal:
        """The principal of a bearer token; without any configured token, whoever comes from this machine.

        Raises: Unauthenticated, always in the same words; ``refused`` was told why.
        """
        if not self.tokens_needed():
            if remote_is_loopback:
                return Principal(name="local", tenant=self._admin_tenant(), scopes=("*",), admin=True)
            self._refuse("token-missing", "no token is configured, so only this machine is served", request_id)
        if not bearer:
            self._refuse("token-missing", "the request carries no token", request_id)
        found = find_hash(bearer, self._principals)
        if found is None:
            self._refuse("token-unknown", "the token is nobody's", request_id)
        return self._principals[found]

    def authenticate_worker(self, token: str, *, actor: str = "") -> str:
        """A name for a worker's token, for records. ``actor`` is who the worker says it is.

        Where no token at all is configured, which only loopback allows, a worker needs none either.

        Raises: Unauthenticated, always in the same words; ``refused`` was told why.
        """
        if not self._worker_tokens and not self.tokens_needed():
            return "worker/local"
        found = find_hash(token, self._worker_tokens)
        if found is None:
            self._refuse("worker-token-unknown", "the token is no worker's", "", actor, cure=_WORKER_CURE)
        return f"worker/{fingerprint(found)}"

    def tokens_needed(self) -> bool:
        """False when no token is configured and callers on loopback need none."""
        return bool(self._principals)

    def check_listen(self, address: str, *, is_loopback: bool) -> None:
        """Raises InvalidSpec for an address that others can reach while nobody needs a token."""
        if not is_loopback and not self.tokens_needed():
            raise InvalidSpec(
                f"{address} can be reached from other machines, and no token is configured",
                cure="Make a token with `corral token new` and put it into [tenants.NAME], or listen on 127.0.0.1.",
            )

    def check_workers_listen(self, address: str, *, is_loopback: bool) -> None:
        """Raises InvalidSpec for an address of the workers' door that others can reach while no worker has a token."""
        if not is_loopback and not self._worker_tokens:
            raise InvalidSpec(
                f"{address} can be reached from other machines, and access.worker_tokens names no token",
                cure="Make a token with `corral token new` and put it into access.worker_tokens.",
            )

    def names(self) -> Collection[str]:
        """All tenants."""
        return self._tenants.keys()

    def get(self, name: str) -> Tenant:
        """Raises NotFound for a tenant that is not configured."""
        if name not in self._tenants:
            raise NotFound(f'there is no tenant "{name[:100]}"', tenant=name[:100])
        return self._tenants[name]

    def quota_bytes(self, name: str) -> int | None:
        """What a tenant may hold in the blob store; None when nothing of its own is set."""
        return self._tenants[name].blob_bytes if name in self._tenants else None

    def secrets(self, tenant: str, names: Collection[str]) -> Mapping[str, str]:
        """Those of the named secrets that the tenant has; nothing for an unknown tenant."""
        held = self._tenants[tenant].secrets if tenant in self._tenants else {}
        return {name: held[name] for name in names if name in held}

    def _tenants_principal(self, token: str, tenant: str) -> Principal:
        return Principal(name=f"{tenant}/{fingerprint(token)}", tenant=tenant, scopes=self._tenants[tenant].scopes)

    def _admin_principal(self, token: str) -> Principal:
        return Principal(name=f"admin/{fingerprint(token)}", tenant=self._admin_tenant(), scopes=("*",), admin=True)

    def _admin_tenant(self) -> str:
        return DEFAULT_TENANT if DEFAULT_TENANT in self._tenants else ""

    def _refuse(self, kind: str, reason: str, request_id: str, actor: str = "", cure: str = _CURE) -> NoReturn:
        self._refused(AccessRefusal(kind=kind, reason=reason, actor=actor, request_id=request_id))
        raise Unauthenticated(_OPAQUE, cure=cure)
