"""``corral.app.launch certificate``: makes a scheduler's certificate, or says the fingerprint of one."""

import argparse
import ipaddress
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from corral.app.own_certificate import write_certificate
from corral.app.start import tell
from corral.kernel.errors import Conflict, CorralError, InvalidSpec
from corral.wire.certificates import fingerprint_of

CERTIFICATE: Final = "scheduler.pem"
KEY: Final = "scheduler.key"
_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")


def make(directory: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """Write a certificate for ``names`` (host names and IP addresses) and its key; the two paths.

    Raises: InvalidSpec for what is no name, or a directory that cannot be written; Conflict when there is one already.
    """
    hosts, addresses = _sorted_names(names or [socket.gethostname().lower()])
    certificate, key = directory / CERTIFICATE, directory / KEY
    for each in (certificate, key):
        if each.exists():
            raise Conflict(f"{each} exists already; it was left as it is", cure="name another directory, or remove it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # a machine asks itself, too
        loopback = ("localhost",), ("127.0.0.1", "::1")
        write_certificate(
            certificate,
            key,
            common_name=(*hosts, *addresses)[0],
            names=tuple(dict.fromkeys((*hosts, *loopback[0]))),
            addresses=tuple(dict.fromkeys((*addresses, *loopback[1]))),
        )
    except OSError as error:
        raise InvalidSpec(f"{error.filename or directory}: cannot be written: {error.strerror}") from error
    return certificate, key


def _sorted_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    hosts: list[str] = []
    addresses: list[str] = []
    for name in names:
        try:
            addresses.append(str(ipaddress.ip_address(name)))
        except ValueError:
            if not _HOST.fullmatch(name):
                raise InvalidSpec(f'--name "{name}": is neither a host name nor an IP address', field="name") from None
            hosts.append(name)
    return hosts, addresses


def _text(certificate: Path, key: Path) -> str:
    fingerprint = fingerprint_of(certificate)
    return f"""\
fingerprint {fingerprint}

# corral.toml of the scheduler
[tls]
certificate = "{certificate.absolute()}"
key = "{key.absolute()}"

# corral.toml of a worker
[join.link.tls]
fingerprint = "{fingerprint}"

# the environment of a client
export CORRAL_FINGERPRINT={fingerprint}
"""


def main() -> int:
    """Exit statuses as everywhere: 0 done, 2 the request is wrong."""
    parser = argparse.ArgumentParser(prog="corral certificate")
    for option in ("--new", "--names", "--show", "--shape"):
        parser.add_argument(option, default="")
    asked = parser.parse_args()
    try:
        if asked.show:
            certificate, told = Path(asked.show), {}
            text = fingerprint_of(certificate) + "\n"
        else:
            certificate, key = make(Path(asked.new), [each for each in asked.names.split(",") if each])
            text, told = _text(certificate, key), {"certificate": str(certificate), "key": str(key)}
        told["fingerprint"] = fingerprint_of(certificate)
    except CorralError as error:
        return tell(error)
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n" if asked.shape == "json" else text)
    return 0
