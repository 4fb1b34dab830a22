"""The nouns of tenants: configuration as people write it, and what becomes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from corral.kernel.errors import Refused

DEFAULT_TENANT: Final = "default"
"""The only tenant where none is configured."""


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[tenants.NAME]`` table.

    Attributes:
        tokens: bearer tokens, each as ``sha256:<64 hex>`` (what ``corral token new`` prints) or in the clear.
        scopes: what these tokens may do; a scope that ends in ``*`` stands for all that begin so.
        max_pending: tasks that may wait at once, unscheduled or pending.
        max_running: runs that may be held at once.
        weight: its part of the fleet, relative to the other tenants'.
        blob_bytes: quota of stored bytes; None for the store's own limits only.
        secrets: name to ``env:NAME``, ``file:PATH`` or ``literal:TEXT``.
    """

    tokens: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ("*",)
    max_pending: int = 100_000
    max_running: int = 10_000
    weight: float = 1.0
    blob_bytes: int | None = None
    secrets: dict[str, str] = {}


class AccessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens that belong to no tenant; written as a tenant's.

    Attributes:
        admin_tokens: may see and steer the whole fleet.
        worker_tokens: may join the fleet; nothing else.
    """

    admin_tokens: tuple[str, ...] = ()
    worker_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A namespace of identity, storage and quota, ready for use; the fields are those of TenantConfig."""

    name: str
    scopes: tuple[str, ...] = ("*",)
    max_pending: int = 100_000
    max_running: int = 10_000
    weight: float = 1.0
    blob_bytes: int | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody who proved who they are.

    Attributes:
        name: for records: the tenant and the first characters of the token's hash; never the token.
        tenant: whose things they use; "" for an administrator where tenants are configured without a default one.
        scopes: what they may do; see ``may``.
        admin: may see and steer the whole fleet.
    """

    name: str
    tenant: str
    scopes: tuple[str, ...]
    admin: bool = False

    def may(self, scope: str) -> bool:
        """Tell whether one of the scopes covers ``scope``."""
        return any(covers(granted, scope) for granted in self.scopes)

    def require(self, scope: str) -> None:
        """Raises Refused when none of the scopes covers ``scope``."""
        if not self.may(scope):
            raise Refused(f'this token does not have the scope "{scope}"', scope=scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRefusal:
    """Why somebody was turned away: for the ledger, never for the caller.

    ``kind`` is token-missing, token-unknown or worker-token-unknown.
    """

    kind: str
    reason: str
    actor: str = ""
    request_id: str = ""


def covers(granted: str, scope: str) -> bool:
    """``tasks:*`` covers ``tasks:submit``; without a star only itself is covered."""
    return scope.startswith(granted[:-1]) if granted.endswith("*") else scope == granted
