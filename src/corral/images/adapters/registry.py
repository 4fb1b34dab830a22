"""A registry over HTTP: the pull half of the OCI distribution specification 1.1, and its token authentication.

Blocking, over ``http.client``. A transfer that breaks off is taken up where it stopped. Credentials go to the registry
and to the token service that it names, and never along a redirect to another host.
"""

import base64
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urljoin, urlsplit

from corral import __version__
from corral.images.machine import INDEX_TYPES, MANIFEST_TYPES
from corral.images.model import Layer, RegistryPlace, is_digest, printable
from corral.images.streams import verified
from corral.kernel.errors import (
    BlobCorrupt,
    CorralError,
    InvalidSpec,
    NotFound,
    Refused,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
)

_PIECE: Final = 256 * 1024
_REDIRECTS_MAX: Final = 5
_TOKEN_BYTES_MAX: Final = 1024**2
_WORDS_BYTES_MAX: Final = 4096
_PARAMETER: Final = re.compile(r'([A-Za-z]+)="([^"]*)"')
_TEMPORARY: Final = frozenset({408, 425, 429})


@dataclass(slots=True)
class _Answer:
    response: http.client.HTTPResponse
    connection: http.client.HTTPConnection

    def close(self) -> None:
        self.connection.close()


class RegistrySource:
    """See ``ports.ImageSource``."""

    def __init__(self, place: RegistryPlace, *, subject: str, stall_s: float, tries: int) -> None:
        self._place = place
        self._subject = subject
        self._stall_s = stall_s
        self._tries = tries
        scheme = "http" if place.insecure else "https"
        self._base = f"{scheme}://{place.registry}/v2/{place.repository}/"
        self._authorization = ""

    def document(self, wanted: str, *, bytes_max: int) -> tuple[bytes, str]:
        answer = self._get(f"manifests/{wanted}", accept=", ".join((*MANIFEST_TYPES, *INDEX_TYPES)))
        try:
            data = self._whole(answer, bytes_max)
            kind = (answer.response.getheader("Content-Type") or "").partition(";")[0].strip()
        finally:
            answer.close()
        if is_digest(wanted):
            data = b"".join(verified(iter([data]), wanted, None, what=f"{self._subject}: its manifest"))
        return data, kind

    def blob(self, digest: str, size_bytes: int) -> bytes:
        answer = self._get(f"blobs/{digest}")
        try:
            data = self._whole(answer, size_bytes)
        finally:
            answer.close()
        return b"".join(verified(iter([data]), digest, size_bytes, what=f"{self._subject}: its configuration"))

    def layer(self, layer: Layer) -> Iterator[bytes]:
        done, failures = 0, 0
        while done < layer.size_bytes or not layer.size_bytes:
            before = done
            try:
                for piece in self._part(layer, done):
                    done += len(piece)
                    yield piece
            except (OSError, http.client.HTTPException) as error:
                cause: Exception = self._unreachable(error)
            else:
                if done >= layer.size_bytes:
                    return
                cause = StoreUnavailable(
                    f"{self._subject}: layer {layer.digest} broke off after {done} of {layer.size_bytes} bytes"
                )
            failures = failures + 1 if done == before else 1
            if failures >= self._tries:
                raise cause

    def close(self) -> None:
        """Nothing stays open between two calls."""

    def _part(self, layer: Layer, offset: int) -> Iterator[bytes]:
        answer = self._get(f"blobs/{layer.digest}", headers={"Range": f"bytes={offset}-"} if offset else {})
        try:
            response = answer.response
            left = layer.size_bytes - offset
            skip = offset if offset and response.status == 200 else 0  # a registry that takes nothing up again
            told = response.getheader("Content-Length")
            if told is not None and told.isdigit() and int(told) != left + skip:
                raise BlobCorrupt(
                    f"{self._subject}: the registry sends {told} bytes for layer {layer.digest}, "
                    f"its manifest names {left + skip}"
                )
            while piece := response.read1(_PIECE):
                if skip:
                    dropped = min(skip, len(piece))
                    skip, piece = skip - dropped, piece[dropped:]
                if piece:
                    yield piece  # too much is noticed by whoever verifies
        finally:
            answer.close()

    def _whole(self, answer: _Answer, bytes_max: int) -> bytes:
        try:
            data = answer.response.read(bytes_max + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        if len(data) > bytes_max:
            raise TooLarge(f"{self._subject}: the registry sends more than {bytes_max} bytes for a document")
        return data

    # ---- requests ----

    def _get(self, path: str, *, accept: str = "*/*", headers: Mapping[str, str] | None = None) -> _Answer:
        """A successful answer; authenticates when asked to. Raises as ``document``."""
        sent = {"Accept": accept, **(headers or {})}
        answer = self._follow(urljoin(self._base, path), sent)
        if answer.response.status == 401:
            challenge = answer.response.getheader("WWW-Authenticate") or ""
            answer.close()
            self._authorization = self._authorize(challenge)
            answer = self._follow(urljoin(self._base, path), sent)
        if answer.response.status in (200, 206):
            return answer
        try:
            raise self._refusal(answer.response)
        finally:
            answer.close()

    def _follow(self, url: str, headers: Mapping[str, str]) -> _Answer:
        home = urlsplit(url).netloc
        for _ in range(_REDIRECTS_MAX + 1):
            sent = dict(headers)
            if self._authorization and urlsplit(url).netloc == home:
                sent["Authorization"] = self._authorization
            answer = self._request(url, sent)
            if answer.response.status not in (301, 302, 303, 307, 308):
                return answer
            target = urljoin(url, answer.response.getheader("Location") or "")
            answer.close()
            if not self._may_go(target):
                raise StoreUnavailable(f"{self._subject}: the registry redirects to {printable(target)}, not to HTTPS")
            url = target
        raise StoreUnavailable(f"{self._subject}: the registry redirects more than {_REDIRECTS_MAX} times")

    def _may_go(self, url: str) -> bool:
        parts = urlsplit(url)
        if parts.scheme == "https":
            return True
        return parts.scheme == "http" and self._place.insecure and parts.netloc == self._place.registry

    def _request(self, url: str, headers: Mapping[str, str]) -> _Answer:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=self._stall_s)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request("GET", target, headers={"User-Agent": f"corral/{__version__}", **headers})
            return _Answer(connection.getresponse(), connection)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise self._unreachable(error) from error

    def _authorize(self, challenge: str) -> str:
        """The Authorization header that answers a challenge (RFC 6750, and Docker's token specification)."""
        credentials = self._place.credentials
        basic = ""
        if credentials.username:
            basic = base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            if not basic:
                raise self._unauthenticated()
            return f"Basic {basic}"
        found = dict(_PARAMETER.findall(rest))
        realm = found.get("realm", "")
        if scheme.lower() != "bearer" or not self._may_ask(realm):
            raise StoreUnavailable(f"{self._subject}: the registry asks for an authentication that is not known")
        query = {key: found[key] for key in ("service", "scope") if key in found}
        query.setdefault("scope", f"repository:{self._place.repository}:pull")
        joint = "&" if urlsplit(realm).query else "?"
        headers = {"Authorization": f"Basic {basic}"} if basic else {}
        answer = self._request(f"{realm}{joint}{urlencode(query)}", headers)
        try:
            if answer.response.status in (400, 401, 403):
                raise self._unauthenticated()
            if answer.response.status != 200:
                raise self._refusal(answer.response)
            told = json.loads(self._whole(answer, _TOKEN_BYTES_MAX))
            token = told.get("token") or told.get("access_token")
        except (ValueError, AttributeError) as error:
            raise StoreUnavailable(f"{self._subject}: the token service gives no token") from error
        finally:
            answer.close()
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise StoreUnavailable(f"{self._subject}: the token service gives no token")
        return f"Bearer {token}"

    def _may_ask(self, realm: str) -> bool:
        """Passwords travel over HTTPS, or on this machine to the registry's own host."""
        parts = urlsplit(realm)
        if parts.scheme == "https":
            return True
        return parts.scheme == "http" and self._place.insecure and parts.hostname == urlsplit(self._base).hostname

    # ---- failures ----

    def _unauthenticated(self) -> Unauthenticated:
        how = "refuses these credentials" if self._place.credentials.username else "asks for credentials"
        return Unauthenticated(
            f"{self._subject}: the registry {self._place.registry} {how}",
            cure="log in with docker on the worker, or name a secret of the tenant that holds user:password",
        )

    def _refusal(self, response: http.client.HTTPResponse) -> CorralError:
        status = response.status
        said = ""
        with suppress(OSError, http.client.HTTPException):
            said = printable(response.read(_WORDS_BYTES_MAX).decode(errors="replace").strip())
        where = f"{self._subject}: the registry {self._place.registry}"
        if status == 404:
            return NotFound(f"{where} has no such image or layer")
        if status == 401:
            return self._unauthenticated()
        if status == 403:
            return Refused(f"{where} does not give it to us: {said}")
        if status in _TEMPORARY or status >= 500:
            return StoreUnavailable(f"{where} answers {status}: {said}")
        return InvalidSpec(f"{where} answers {status}: {said}")

    def _unreachable(self, error: Exception) -> CorralError:
        if isinstance(error, CorralError):
            return error
        where = f"{self._subject}: the registry {self._place.registry}"
        if isinstance(error, TimeoutError):
            return StoreUnavailable(f"{where} was silent for {self._stall_s:g} s")
        if isinstance(error, ssl.SSLError):
            return StoreUnavailable(f"{where} cannot be trusted or does not speak HTTPS: {error}")
        if isinstance(error, socket.gaierror):
            return StoreUnavailable(f"{where} has a name that cannot be looked up: {error.strerror}")
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return StoreUnavailable(f"{where} cannot be reached: {printable(words)}")
