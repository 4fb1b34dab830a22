"""How a client knows that it talks to its own scheduler: the machine's CAs, one CA file, or one pinned certificate."""

import ssl
from typing import Final

from corral.kernel.errors import CorralError, InvalidSpec, SchedulerUnavailable, Unauthenticated
from corral.wire.certificates import AnotherCertificate, pinning_context

_HTTPS: Final = "https://"


def tls_context(url: str, *, ca_file: str, fingerprint: str) -> ssl.SSLContext | None:
    """What checks the certificate of the scheduler at ``url``; None for plain text.

    Raises InvalidSpec for what cannot be meant: both ways at once, or one of them with plain text.
    """
    if ca_file and fingerprint:
        raise InvalidSpec(
            "CORRAL_CA_FILE and CORRAL_FINGERPRINT are two ways to check one certificate: set one of them"
        )
    if not url.lower().startswith(_HTTPS):
        if ca_file or fingerprint:
            name = "CORRAL_CA_FILE" if ca_file else "CORRAL_FINGERPRINT"
            raise InvalidSpec(
                f"{name} is set, and {url} shows no certificate", cure=f"write {_HTTPS}…, or unset {name}"
            )
        return None
    if fingerprint:
        try:
            return pinning_context(fingerprint)
        except ValueError as error:
            raise InvalidSpec(f"CORRAL_FINGERPRINT: {error}", field="fingerprint") from error
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # ssl.SSLError is one, too
        reason = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidSpec(f"CORRAL_CA_FILE: {ca_file} cannot be used: {reason}", field="ca_file") from error


def tls_failure(url: str, error: BaseException | None) -> CorralError | None:
    """Ours for a connection that failed in its TLS; None when ``error`` did not come from there."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    match error:
        case None:
            return None
        case AnotherCertificate(seen=seen):
            return Unauthenticated(
                f"the scheduler at {url} shows another certificate than the pinned one: {seen}",
                cure="if that is its new certificate, set CORRAL_FINGERPRINT to it",
                url=url,
            )
        case ssl.SSLCertVerificationError():
            return Unauthenticated(
                f"the certificate of the scheduler at {url} is not trusted: {error.verify_message}",
                cure="set CORRAL_FINGERPRINT to what its operator tells you, or CORRAL_CA_FILE to its CA's certificate",
                url=url,
            )
    plain = f"http{url[len('https') :]}"
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return SchedulerUnavailable(f"what answers at {url} does not speak TLS", cure=f"write {plain}", url=url)
    return SchedulerUnavailable(
        f"no TLS with the scheduler at {url}: {error.reason or error}", cure=f"if it has none, write {plain}", url=url
    )
