"""Credentials for registries: docker's configuration file, and a tenant's secret."""

import base64
import binascii
import os
from pathlib import Path

import msgspec

from corral.images.model import Credentials
from corral.kernel.errors import InvalidSpec


class _Entry(msgspec.Struct, frozen=True, rename="lower"):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry] = {}


def from_docker(file: str, registry: str) -> Credentials:
    """What docker's ``config.json`` (at ``file``, or at docker's own place) holds for ``registry``; nobody without.

    Credential helpers are programs that docker runs; they are not run here.
    Raises InvalidSpec when the file is there and cannot be read.
    """
    path = Path(file) if file else _docker_file()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if file:
            raise InvalidSpec(f"images.credentials_file: there is no file {file}") from None
        return Credentials()
    except (PermissionError, NotADirectoryError):
        if file:
            raise InvalidSpec(f"images.credentials_file: {file} cannot be read") from None
        return Credentials()
    return _of(data, registry, f"the credentials file {path}")


def from_secret(secret: str, registry: str) -> Credentials:
    """A tenant's secret: ``user:password``, or the text of a docker ``config.json``. Raises InvalidSpec."""
    if secret.lstrip().startswith("{"):
        return _of(secret.encode(), registry, "the image's secret")
    username, colon, password = secret.strip().partition(":")
    if not colon or not username:
        raise InvalidSpec("image_secret: the secret is neither user:password nor a docker config.json")
    return Credentials(username=username, password=password)


def _docker_file() -> Path:
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def _of(data: bytes, registry: str, what: str) -> Credentials:
    try:
        auths = msgspec.json.decode(data, type=_File).auths
        entries = {_host(name): entry for name, entry in auths.items()}
        entry = entries.get(registry)
        if entry is None:
            return Credentials()
        if entry.identitytoken:
            return Credentials(username="<token>", password=entry.identitytoken)
        if entry.auth:
            username, _, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
            return Credentials(username=username, password=password.rstrip("\0"))
    except (msgspec.DecodeError, binascii.Error, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{what} cannot be read: {type(error).__name__}") from error
    return Credentials(username=entry.username, password=entry.password)


def _host(name: str) -> str:
    """``https://host/v1/`` and ``host`` are the same key."""
    return name.removeprefix("https://").removeprefix("http://").partition("/")[0]
