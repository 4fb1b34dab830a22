"""How two of our processes are connected: limits, keepalive, and TLS.

Plain text is for loopback. Elsewhere the scheduler shows a certificate, which a worker checks against a CA file or
against the certificate's SHA-256 fingerprint; a scheduler may ask for client certificates of a CA in turn.
"""

import asyncio
import hashlib
import ipaddress
import ssl
from pathlib import Path
from typing import Final

import grpc
import msgspec

from corral.kernel.errors import InvalidSpec, SchedulerUnavailable, Unauthenticated

_PINNED_NAME: Final = "corral-scheduler"


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
    """Paths of PEM files. With ``client_ca`` only workers with a certificate of that CA may connect."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""


class ClientTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker checks the scheduler: paths of PEM files, or the certificate's SHA-256 ``fingerprint`` in hex.

    ``plain`` allows plain text to a scheduler on another machine; it must be said on purpose.
    """

    ca: str = ""
    fingerprint: str = ""
    certificate: str = ""
    key: str = ""
    plain: bool = False


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


def server_options(limits: WireLimits) -> list[tuple[str, int]]:
    """Channel arguments of a server."""
    return [
        *_both(limits),
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.keepalive_s * 500)),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_concurrent_streams", limits.streams_max),
        ("grpc.so_reuseport", 0),
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
                cure="give tls.ca or tls.fingerprint, or say tls.plain = true if the network itself is safe",
            )
        return grpc.aio.insecure_channel(address, options=options)
    if tls.fingerprint:
        root = await _pinned(address, tls.fingerprint)
        options.append(("grpc.ssl_target_name_override", _name_in(root)))
    else:
        root = _pem(tls.ca, "ca")
    key = _pem(tls.key, "key") if tls.key else None
    certificate = _pem(tls.certificate, "certificate") if tls.certificate else None
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    return grpc.aio.secure_channel(address, credentials, options=options)


async def _pinned(address: str, fingerprint: str) -> bytes:
    """The certificate shown at ``address``, which then is the only one trusted, if it is the pinned one."""
    host, port = address.rsplit(":", 1)
    try:
        async with asyncio.timeout(10):
            pem = await asyncio.to_thread(ssl.get_server_certificate, (host.strip("[]"), int(port)), timeout=10)
    except (OSError, ValueError) as error:
        raise SchedulerUnavailable(f"no certificate is shown at {address}: {error}") from error
    shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    if shown != fingerprint.lower().replace(":", ""):
        raise Unauthenticated(f"the scheduler at {address} shows another certificate: {shown}")
    return pem.encode()


def _name_in(pem: bytes) -> str:
    from cryptography import x509  # noqa: PLC0415 - heavy, and only a pinned worker needs it, once

    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        found = []
    return found[0] if found else _PINNED_NAME


def _pem(path: str, field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidSpec(f'tls.{field}: "{path}" cannot be read: {error.strerror}', field=f"tls.{field}") from error
