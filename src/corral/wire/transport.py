"""How two of our processes are connected: limits, keepalive, and TLS.

Plain text is for loopback. Elsewhere the scheduler shows a certificate, which a worker checks against a CA file or
against the certificate's SHA-256 fingerprint; a scheduler may ask for client certificates of a CA in turn.
"""

import asyncio
import hashlib
import ipaddress
import ssl
from pathlib import Path
from socket import create_connection
from typing import Any, Final

import grpc
import msgspec

from corral.kernel.errors import InvalidSpec, SchedulerUnavailable, Unauthenticated
from corral.wire.certificates import fingerprint_digits

_SHOW_WITHIN_S: Final = 10.0


class WireLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of a connection.

    Attributes:
        message_bytes_max: the largest message, both ways; larger things travel as streams.
        keepalive_s: a silent connection is probed so often, and dropped when no answer comes within
            ``keepalive_timeout_s``.
        reconnect_min_s, reconnect_max_s: pauses between attempts to connect.
        streams_max: calls at one time on one connection.
    """

    message_bytes_max: int = 16 * 1024**2
    keepalive_s: float = 10.0
    keepalive_timeout_s: float = 5.0
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 2.0
    streams_max: int = 1000


class ServerTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the scheduler shows who it is.

    Attributes:
        certificate, key: paths of PEM files; without them the link is plain text, which is for loopback.
        client_ca: path of a PEM file; then only workers with a certificate of that CA may connect.
        plain: allow plain text on an address that other machines can reach; it must be said on purpose.
    """

    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    plain: bool = False

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together: give both or none")
        if self.client_ca and not self.certificate:
            raise ValueError("client_ca needs certificate and key")


class ClientTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker checks the scheduler's certificate, and what it shows itself.

    Attributes:
        ca: path of a PEM file; the scheduler's certificate must come from it.
        fingerprint: SHA-256 of the scheduler's certificate in hex; no other one is accepted.
        certificate, key: paths of PEM files, for schedulers that ask workers for a certificate.
        plain: allow plain text to a scheduler on another machine; it must be said on purpose.
    """

    ca: str = ""
    fingerprint: str = ""
    certificate: str = ""
    key: str = ""
    plain: bool = False

    def __post_init__(self) -> None:
        if self.ca and self.fingerprint:
            raise ValueError("ca and fingerprint are two ways to check one certificate: give one of them")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together: give both or none")
        if self.fingerprint:
            try:
                fingerprint_digits(self.fingerprint)
            except ValueError as error:
                raise ValueError(f"fingerprint: {error}") from error


def is_loopback(address: str) -> bool:
    """True when ``host:port`` names this machine only. A unix socket does."""
    if address.startswith("unix:"):
        return True
    host = address.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_options(limits: WireLimits, *, share_port: bool = False) -> list[tuple[str, int]]:
    """Channel arguments of a server; with ``share_port`` other processes of ours may listen at the same port."""
    return [
        *_both(limits),
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.keepalive_s * 500)),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_concurrent_streams", limits.streams_max),
        ("grpc.so_reuseport", int(share_port)),
    ]


def channel_options(limits: WireLimits) -> list[tuple[str, int | str]]:
    """Channel arguments of a client."""
    return [
        *_both(limits),
        ("grpc.initial_reconnect_backoff_ms", int(limits.reconnect_min_s * 1000)),
        ("grpc.min_reconnect_backoff_ms", int(limits.reconnect_min_s * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(limits.reconnect_max_s * 1000)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),  # whoever calls knows what may be repeated
    ]


def _both(limits: WireLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", limits.message_bytes_max),
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_credentials(tls: ServerTls | None) -> grpc.ServerCredentials | None:
    """The scheduler's side of TLS; None means plain text. Raises InvalidSpec when a file cannot be read."""
    if tls is None or not tls.certificate:
        return None
    client_ca = _pem(tls.client_ca, "client_ca") if tls.client_ca else None
    pair = (_pem(tls.key, "key"), _pem(tls.certificate, "certificate"))
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


async def open_channel(address: str, tls: ClientTls, limits: WireLimits) -> grpc.aio.Channel:
    """A channel to the scheduler at ``host:port``; it connects by itself, again and again.

    Raises:
        InvalidSpec: plain text to another machine, or a file cannot be read.
        Unauthenticated: the scheduler's certificate is not the pinned one.
        SchedulerUnavailable: nobody there to show the pinned certificate.
    Cancellation: safe.
    """
    options: list[tuple[str, int | str]] = channel_options(limits)
    if not (tls.ca or tls.fingerprint):
        if not is_loopback(address) and not tls.plain:
            raise InvalidSpec(
                f"the scheduler at {address} is on another machine and no TLS is configured",
                cure="give join.link.tls.fingerprint or join.link.tls.ca, "
                "or say join.link.tls.plain = true if the network itself is safe",
            )
        return grpc.aio.insecure_channel(address, options=options)
    if tls.fingerprint:
        root, name = await _pinned(address, tls.fingerprint)
        options.append(("grpc.ssl_target_name_override", name))
    else:
        root = _pem(tls.ca, "ca")
    key = _pem(tls.key, "key") if tls.key else None
    certificate = _pem(tls.certificate, "certificate") if tls.certificate else None
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    return grpc.aio.secure_channel(address, credentials, options=options)


async def _pinned(address: str, fingerprint: str) -> tuple[bytes, str]:
    """The certificate shown at ``address``, if it is the pinned one, and a name in it.

    From then on it is the only one that is trusted, so that whoever stood in between gains nothing.
    """
    host, port = address.rsplit(":", 1)
    try:
        async with asyncio.timeout(2 * _SHOW_WITHIN_S):
            pem, shown = await asyncio.to_thread(_shown, host.strip("[]"), int(port), None)
            seen = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
            if seen != fingerprint_digits(fingerprint):
                raise Unauthenticated(
                    f"the scheduler at {address} shows another certificate than the pinned one: {seen}",
                    cure="if that is its new certificate, set join.link.tls.fingerprint to it",
                )
            _, shown = await asyncio.to_thread(_shown, host.strip("[]"), int(port), pem)
    except (OSError, ValueError) as error:
        raise SchedulerUnavailable(f"no certificate is shown at {address}: {error}") from error
    return pem.encode(), _name_in(shown)


def _shown(host: str, port: int, trusted: str | None) -> tuple[str, dict[str, Any]]:
    """The certificate that a server shows, and what it says, which only a trusted one is asked; blocks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE if trusted is None else ssl.CERT_REQUIRED
    if trusted is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may be anybody's: we trust this one
        context.load_verify_locations(cadata=trusted)
    with (
        create_connection((host, port), timeout=_SHOW_WITHIN_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        der = wrapped.getpeercert(binary_form=True) or b""
        return ssl.DER_cert_to_PEM_cert(der), dict(wrapped.getpeercert() or {})


def _name_in(certificate: dict[str, Any]) -> str:
    """A name that the certificate is for, as gRPC must be told to expect it."""
    names = {kind: value for kind, value in reversed(certificate.get("subjectAltName", ()))}
    found = names.get("DNS") or names.get("IP Address")
    if not found:
        raise InvalidSpec(
            "the scheduler's certificate names nobody (no subjectAltName), so no client can check it",
            cure='make one with a name, for example `openssl req -x509 … -addext "subjectAltName=DNS:scheduler"`',
        )
    return str(found)


def _pem(path: str, field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidSpec(f'tls.{field}: "{path}" cannot be read: {error.strerror}', field=f"tls.{field}") from error
