"""The certificate that a worker makes for itself at its first start, and the key that signs its results.

Both are registered: the fingerprint of the one, the public half of the other. They are made by a process of its own
(``python -m corral.app.own_certificate DIRECTORY NAME``): the library for it would otherwise stay in the worker's
memory.
"""

import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from corral.fleet.tokens import SigningKey
from corral.kernel.clock import SystemClock
from corral.kernel.errors import SandboxFailed
from corral.wire.certificates import fingerprint_of

CERTIFICATE: Final = "worker.crt"
KEY: Final = "worker.key"
RESULT_SEED: Final = "worker.sign"
RESULT_KEY: Final = "worker.sign.pub"
_VALID: Final = timedelta(days=3650)
_MAKE_WITHIN_S: Final = 60.0


async def own_fingerprint(directory: Path, name: str) -> str:
    """The fingerprint of the certificate kept in ``directory``, which is made for ``name`` when there is none.

    Raises: InvalidSpec when the file is no certificate; SandboxFailed when none could be made.
    """
    if not all((directory / name).exists() for name in (CERTIFICATE, KEY, RESULT_SEED, RESULT_KEY)):
        command = [sys.executable, "-m", "corral.app.own_certificate", str(directory), name]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(_MAKE_WITHIN_S):
            _, said = await process.communicate()
        if process.returncode != 0:
            raise SandboxFailed(f"no certificate could be made in {directory}: {said.decode(errors='replace')[-300:]}")
    return fingerprint_of(directory / CERTIFICATE)


def result_key(directory: Path) -> str:
    """The public key that signs results, hex; "" when none was made."""
    try:
        return (directory / RESULT_KEY).read_text().strip()
    except FileNotFoundError:
        return ""


def make(directory: Path, name: str) -> None:
    """Write what is missing: a key with a certificate for ``name``, and a key for results; for their owner's eyes."""
    if not (directory / CERTIFICATE).exists() or not (directory / KEY).exists():
        names = (name.replace("_", "-"),)
        write_certificate(directory / CERTIFICATE, directory / KEY, common_name=name, names=names)
    if not (directory / RESULT_SEED).exists() or not (directory / RESULT_KEY).exists():
        seed = secrets.token_bytes(32)
        _write(directory / RESULT_SEED, seed.hex().encode())
        _write(directory / RESULT_KEY, SigningKey(seed).public.hex().encode())


def write_certificate(
    certificate_file: Path, key_file: Path, *, common_name: str, names: Sequence[str], addresses: Sequence[str] = ()
) -> None:
    """A new key, readable for its owner alone, and a certificate that it signs itself, good for ten years.

    ``names`` are host names and ``addresses`` IP addresses that it is for. Raises OSError.
    """
    from cryptography import x509  # noqa: PLC0415 - heavy, and only this process needs it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    good_for: list[x509.GeneralName] = [x509.DNSName(each) for each in names]
    good_for += [x509.IPAddress(ip_address(each)) for each in addresses]
    now = datetime.fromtimestamp(SystemClock().now_s(), tz=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName(good_for), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(key_file, private)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
