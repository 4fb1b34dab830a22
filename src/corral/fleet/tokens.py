"""Short-lived tokens that let a client call one worker: JWS compact serialisation with EdDSA (RFC 7515, RFC 8037).

The scheduler signs with an Ed25519 key that lives in its memory; workers get the public half with their desired state.
A token is for one tenant, image, worker and purpose. Keys and signatures are raw bytes here; the library behind them
is heavy and is loaded by the first token.
"""

import base64
from dataclasses import dataclass
from typing import Final

import msgspec

from corral.kernel.errors import Unauthenticated
from corral.kernel.json import MALFORMED

TTL_S: Final = 300.0
_EARLY_S: Final = 30.0
_TOKEN_CHARACTERS_MAX: Final = 4096


class RouteClaims(msgspec.Struct, frozen=True, kw_only=True):
    """What a token is for. ``iat`` and ``exp`` are Unix seconds (RFC 7519); ``jti`` is the route's id."""

    tenant: str
    image: str
    worker: str
    purpose: str
    iat: float
    exp: float
    jti: str


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str = ""


class SigningKey:
    """An Ed25519 key pair. ``seed`` are its 32 secret bytes; without them a fresh one is made."""

    def __init__(self, seed: bytes | None = None) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - heavy, and seldom used
            Ed25519PrivateKey,
        )

        self._private = Ed25519PrivateKey.generate() if seed is None else Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64 bytes (RFC 8032)."""
        return self._private.sign(message)

    def token(self, claims: RouteClaims) -> str:
        """The claims, signed."""
        head = _encoded(msgspec.json.encode(_Header("EdDSA", self.public[:8].hex())))
        body = _encoded(msgspec.json.encode(claims))
        return f"{head}.{body}.{_encoded(self.sign(f'{head}.{body}'.encode()))}"


def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether the owner of ``public`` signed ``message``."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - heavy, and seldom used
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Expected:
    """What a call must be for. ``image`` None: the call names none."""

    worker: str
    purpose: str
    tenant: str
    image: str | None


class TokenRefused(Unauthenticated):
    """The caller hears that the token is not valid here; ``reason`` is for the ledger."""

    def __init__(self, reason: str) -> None:
        super().__init__("the token is not valid here", cure="ask the scheduler for another route")
        self.reason = reason


def key_of(token: str) -> str:
    """Which key signed, as the token says; for a worker that may have to wait for it. Raises TokenRefused."""
    return _parts(token)[0].kid


def verify(token: str, public: bytes, expected: Expected, *, now_s: float) -> RouteClaims:
    """The claims of a token that is valid for this call. Raises TokenRefused, which never tells the caller why."""
    header, claims, message, signature = _parts(token)
    if header.alg != "EdDSA":
        raise TokenRefused(f"algorithm {header.alg[:20]}")
    if not is_signed(public, message, signature):
        raise TokenRefused("forged, or signed by another scheduler")
    if now_s >= claims.exp or now_s < claims.iat - _EARLY_S or claims.exp - claims.iat > TTL_S:
        raise TokenRefused("expired, or not valid yet")
    found = Expected(claims.worker, claims.purpose, claims.tenant, claims.image)
    for name in ("worker", "purpose", "tenant", "image"):
        wanted = getattr(expected, name)
        if wanted is not None and getattr(found, name) != wanted:
            raise TokenRefused(f"for another {name}")
    return claims


def _parts(token: str) -> tuple[_Header, RouteClaims, bytes, bytes]:
    parts = token.split(".")
    if len(parts) != 3 or len(token) > _TOKEN_CHARACTERS_MAX:
        raise TokenRefused("malformed")
    try:
        header = msgspec.json.decode(_decoded(parts[0]), type=_Header)
        claims = msgspec.json.decode(_decoded(parts[1]), type=RouteClaims)
        return header, claims, f"{parts[0]}.{parts[1]}".encode(), _decoded(parts[2])
    except (ValueError, *MALFORMED):
        raise TokenRefused("malformed") from None


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
