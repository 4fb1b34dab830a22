"""One HTTP connection pool to one scheduler; foreign exceptions become ours here and nowhere else."""

import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from corral import __version__
from corral.client.errors import error_of
from corral.client.model import Problem
from corral.client.trust import tls_context, tls_failure
from corral.kernel.errors import CorralError, InvalidSpec, NotFound, SchedulerUnavailable
from corral.kernel.json import MALFORMED, why_malformed

T = TypeVar("T")
DEFAULT_URL: Final = "http://127.0.0.1:7070"
_API: Final = "/api/v1"
_LONGEST_PROBLEM: Final = 64 * 1024


class Connection:
    """Requests to ``url`` with ``token``; what is not given comes from CORRAL_URL, CORRAL_TOKEN, CORRAL_CA_FILE and
    CORRAL_FINGERPRINT.

    An ``https://`` scheduler shows a certificate of a CA that this machine trusts, or of the one in ``ca_file`` (PEM),
    or the one whose SHA-256 is ``fingerprint``. ``timeout_s`` bounds each connect and each pause between bytes, not a
    whole stream. Raises InvalidSpec.
    """

    def __init__(
        self, url: str = "", token: str = "", *, ca_file: str = "", fingerprint: str = "", timeout_s: float = 30.0
    ) -> None:
        self.url = (url or os.environ.get("CORRAL_URL", "") or DEFAULT_URL).rstrip("/")
        token = token or os.environ.get("CORRAL_TOKEN", "")
        if not (ca_file or fingerprint):
            ca_file, fingerprint = os.environ.get("CORRAL_CA_FILE", ""), os.environ.get("CORRAL_FINGERPRINT", "")
        tls = tls_context(self.url, ca_file=ca_file, fingerprint=fingerprint)
        headers = {"user-agent": f"corral/{__version__}"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                headers=headers,
                verify=tls or False,  # plain text: nothing to verify, and no CAs to load
                timeout=httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)),
                limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
                trust_env=False,  # a proxy from the environment must not see a scheduler on loopback
            )
        except (httpx.InvalidURL, ValueError, UnicodeError) as error:
            raise InvalidSpec(f'"{self.url}" is not a URL; write for example "{DEFAULT_URL}"', field="url") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Send one JSON request and read one JSON answer.

        Raises: SchedulerUnavailable when nobody answers; otherwise the error that the scheduler reports.
        Cancellation: the request may have been carried out.
        """
        content = None if body is None else msgspec.json.encode(body)
        sent = {"content-type": "application/json"} if content is not None else {}
        with self._mapped():
            response = await self._http.request(
                method,
                _API + path,
                content=content,
                params=_query(query),
                headers={**sent, **(headers or {})},
                timeout=httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s, connect=5.0),
            )
        if response.is_error:
            raise _error(response, response.content)
        return self._decoded(response.content, answer)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterable[bytes] | None = None,
        idle_s: float | None = None,
    ) -> AsyncIterator["Body"]:
        """Send a request and hand over its answer's body as it comes; ``idle_s`` bounds the pause between bytes."""
        timeout = httpx.USE_CLIENT_DEFAULT if idle_s is None else httpx.Timeout(30.0, connect=5.0, read=idle_s)
        request = self._http.build_request(
            method, _API + path, params=_query(query), headers=dict(headers or {}), content=content, timeout=timeout
        )
        with self._mapped():
            response = await self._http.send(request, stream=True)
        try:
            if response.is_error:
                with self._mapped():
                    raise _error(response, await _first_bytes(response))
            yield Body(self, response)
        finally:
            await response.aclose()

    def _decoded(self, content: bytes, answer: type[T]) -> T:
        try:
            return msgspec.json.decode(content or b"null", type=answer)
        except MALFORMED as error:
            raise SchedulerUnavailable(
                f"what answers at {self.url} is not a Corral scheduler of this version: {why_malformed(error)}",
                url=self.url,
            ) from error

    def _mapped(self) -> "_Mapped":
        return _Mapped(self.url)


class Body:
    """The body of an answer."""

    def __init__(self, connection: Connection, response: httpx.Response) -> None:
        self._connection = connection
        self._response = response

    @property
    def headers(self) -> Mapping[str, str]:
        """Header names are case-insensitive."""
        return self._response.headers

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes as they come. Raises SchedulerUnavailable when the connection breaks."""
        with _Mapped(self._connection.url):
            async for piece in self._response.aiter_raw():
                yield piece


class _Mapped:
    """Turns every exception of the HTTP library into ours."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, httpx.HTTPError) and (failure := tls_failure(self._url, error)) is not None:
            raise failure from error
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise SchedulerUnavailable(
                f"no scheduler answers at {self._url}",
                cure="start one with `corral up`, or set CORRAL_URL",
                url=self._url,
            ) from error
        if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
            raise InvalidSpec(f'"{self._url}" is not a URL; write for example "{DEFAULT_URL}"', field="url") from error
        if isinstance(error, httpx.TimeoutException):
            raise SchedulerUnavailable(
                f"the scheduler at {self._url} did not answer in time ({type(error).__name__})", url=self._url
            ) from error
        if isinstance(error, httpx.RemoteProtocolError) and "illegal" in str(error):
            raise SchedulerUnavailable(
                f"what answers at {self._url} does not speak HTTP",
                cure="write the address that `corral up` calls http=…; with a certificate it begins with https://",
                url=self._url,
            ) from error
        if isinstance(error, httpx.HTTPError | httpx.StreamError):
            raise SchedulerUnavailable(
                f"the connection to the scheduler at {self._url} broke: {str(error) or type(error).__name__}",
                cure="try again; if it stays so, look at the scheduler's log, "
                "and whether its address begins with https://",
                url=self._url,
            ) from error


def segment(text: str) -> str:
    """One part of a path. Raises NotFound for a text that could never be one, as an id with slashes or only dots."""
    if "/" in text or not text.strip("."):
        raise NotFound(f'nothing has the id "{text[:60]}"', id=text[:60])
    return quote(text, safe="")


def _query(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (query or {}).items() if value not in (None, "")}


async def _first_bytes(response: httpx.Response) -> bytes:
    content = b""
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _LONGEST_PROBLEM:
            break
    return content


def _error(response: httpx.Response, content: bytes) -> CorralError:
    try:
        return error_of(msgspec.json.decode(content, type=Problem))
    except MALFORMED:
        return SchedulerUnavailable(
            f"{response.url.host} answered {response.status_code} {response.reason_phrase}, "
            "which is not an answer of Corral",
            status=response.status_code,
        )
