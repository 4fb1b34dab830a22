"""Certificates by their fingerprints; knows nothing of gRPC, so that everybody can afford it."""

import hashlib
import ssl
from pathlib import Path
from typing import Final

from corral.kernel.errors import InvalidSpec

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


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
