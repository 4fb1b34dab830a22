"""What every call passes: who calls, and whether the instance it names is theirs."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NoReturn, Protocol, cast
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from corral.doors.reapi.services import Identities
from corral.kernel.errors import Refused
from corral.tenants.model import Principal
from corral.wire.reapi import remote_execution_pb2 as reapi
from corral.wire.server import Context

READ_BLOBS: Final = "blobs:read"
WRITE_BLOBS: Final = "blobs:write"
READ_RESULTS: Final = "actions:read"
WRITE_RESULTS: Final = "actions:cache"
EXECUTE: Final = "actions:execute"

_METADATA_KEY: Final = "build.bazel.remote.execution.v2.requestmetadata-bin"
_COMMON_NAME: Final = "x509_common_name"
_ID_MAX: Final = 64
_PEERS_KEPT: Final = 1000  # a connection asks for as long as it lives


class Admission(Protocol):
    """Says whose things a call uses."""

    def tenant(self, context: Context, instance: str, scope: str) -> str:
        """See ``Entrance.tenant``."""
        ...


class Entrance:
    """Turns a call into a tenant."""

    def __init__(self, identities: Identities, *, certificates: bool, loopback: bool) -> None:
        """
        Args:
            certificates: clients show one, and it says who they are.
            loopback: only this machine reaches the door.
        """
        self._identities = identities
        self._certificates = certificates
        self._everybody: Principal | None = None
        if loopback and not certificates and not identities.tokens_needed():  # then no call needs to be looked at
            self._everybody = identities.authenticate(None, remote_is_loopback=True, request_id="")

    def tenant(self, context: Context, instance: str, scope: str) -> str:
        """Whose things this call uses: the instance's name is the tenant's, and "" is the caller's own.

        Raises: Unauthenticated; Refused for another tenant's instance or a scope that is not granted.
        """
        return self.admit(self.caller(context), context, instance, scope)

    def caller(self, context: Context) -> Principal:
        """Who calls. Raises Unauthenticated."""
        if self._everybody is not None:
            return self._everybody
        if self._certificates:
            shown = context.auth_context()
            name = b"".join(shown.get(_COMMON_NAME, ())).decode("utf-8", "replace")
            return self._identities.of_certificate(name, request_id=_request_id(context))
        return self._identities.authenticate(
            _bearer(context), remote_is_loopback=_is_loopback(context.peer()), request_id=""
        )

    def admit(self, caller: Principal, context: Context, instance: str, scope: str) -> str:
        """As ``tenant``, for a caller who is known."""
        tenant = instance or caller.tenant
        if tenant != caller.tenant and not self._identities.may_act_for(caller, tenant):
            self.refuse(caller, f'the instance "{instance[:100]}" is not this token\'s tenant', context)
        if not tenant:
            self.refuse(caller, "an administrator's token belongs to no tenant: name one as the instance", context)
        if not caller.may(scope):
            self.refuse(caller, f'this token does not have the scope "{scope}"', context)
        return tenant

    def refuse(self, caller: Principal, reason: str, context: Context) -> NoReturn:
        """Say no to somebody who is known, and record it. Raises Refused."""
        self._identities.refused(caller, reason, _request_id(context))
        raise Refused(reason)


def metadata_of(context: Context) -> reapi.RequestMetadata:
    """Who calls and why, as the client tells it; empty when it tells nothing or nonsense."""
    for key, value in _metadata(context):
        if key == _METADATA_KEY:
            try:
                return reapi.RequestMetadata.FromString(cast(bytes, value))
            except DecodeError:
                break
    return reapi.RequestMetadata()


def _request_id(context: Context) -> str:
    return metadata_of(context).tool_invocation_id[:_ID_MAX]


def _bearer(context: Context) -> str | None:
    for key, value in _metadata(context):
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None


def _metadata(context: Context) -> Iterable[tuple[str, str | bytes]]:
    return cast(Iterable[tuple[str, str | bytes]], context.invocation_metadata() or ())


@lru_cache(maxsize=_PEERS_KEPT)
def _is_loopback(peer: str) -> bool:
    """Whether gRPC's name of the other end (``ipv4:127.0.0.1:40000``) is on this machine."""
    family, _, rest = unquote(peer).partition(":")
    if family == "unix":
        return True
    try:
        return ipaddress.ip_address(rest.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False
