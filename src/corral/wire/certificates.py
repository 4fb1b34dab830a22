"""Certificates by their fingerprints; knows nothing of gRPC, so that everybody can afford it."""

import hashlib
import hmac
import ssl
from pathlib import Path
from string import hexdigits
from typing import Final

from corral.kernel.errors import InvalidSpec

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_FINGERPRINT_DIGITS: Final = 64


class AnotherCertificate(ssl.SSLCertVerificationError):
    """A server showed another certificate than the pinned one; ``seen`` is the fingerprint of that."""

    def __init__(self, seen: str) -> None:
        super().__init__(f"another certificate than the pinned one was shown: {seen}")
        self.seen = seen


def fingerprint_of(path: Path) -> str:
    """SHA-256 of the first certificate in a PEM file, lower-case hex. Raises InvalidSpec when it has none."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise InvalidSpec(f'"{path}" cannot be read: {error.strerror}') from error
    begin, end = text.find(_BEGIN), text.find(_END)
    try:
        der = ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)])
    except ValueError as error:
        raise InvalidSpec(f'"{path}" holds no certificate in PEM') from error
    return hashlib.sha256(der).hexdigest()


def fingerprint_digits(text: str) -> str:
    """A fingerprint as people write it, as 64 lower-case digits. Raises ValueError with what would be right."""
    digits = text.strip().lower().replace(":", "")
    if len(digits) != _FINGERPRINT_DIGITS or not set(digits) <= set(hexdigits):
        raise ValueError(
            "write 64 hexadecimal digits, as `openssl x509 -noout -fingerprint -sha256 -in certificate.pem` prints them"
        )
    return digits


def pinning_context(fingerprint: str) -> ssl.SSLContext:
    """A client's context that accepts exactly one certificate, whoever issued it and whatever it names.

    The handshake proves that the server holds the key; nothing is sent before the comparison. Raises ValueError for a
    text that is no fingerprint, and AnotherCertificate in a handshake.
    """
    pinned = fingerprint_digits(fingerprint)

    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            seen = hashlib.sha256(self.getpeercert(binary_form=True) or b"").hexdigest()
            if not hmac.compare_digest(seen, pinned):
                raise AnotherCertificate(seen)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslobject_class = Pinned
    return context


def trusting_only(path: Path) -> ssl.SSLContext:
    """A client's context for a server of our own, whose certificate is the first of a PEM file, whatever it names.

    Raises InvalidSpec when the file holds none.
    """
    return pinning_context(fingerprint_of(path))
