"""A request as CGI variables (RFC 3875, as WAGI has them), and the head of an answer from what a program printed.

Pure, and strict: nothing that a client or a program writes becomes a header or a variable of somebody else. Header
names with "_" are left out (they would look like those with "-"), and so is ``Proxy`` (programs take HTTP_PROXY for
their own setting).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

HEAD_MAX: Final = 64 * 1024
"""Bytes of the head that a program may print."""

Header = tuple[bytes, bytes]
HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
_OURS: Final = frozenset((b"x-request-id", b"x-corral-revision", b"x-corral-instance", b"x-corral-start"))
_FORWARDING: Final = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"))
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE_BAD: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n|\A\r?\n")
_STATUS: Final = re.compile(rb"([1-9][0-9][0-9])(?: ([\x20-\x7e\x80-\xff]{0,200}))?")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_names: dict[bytes, bytes] = {}
_NAMES_MAX: Final = 4096


@dataclass(slots=True)
class Asking:
    """A request as it came, and where it goes: ``script`` and ``path`` are set when that is known."""

    method: bytes
    target: bytes
    version: bytes
    headers: Sequence[Header]
    host: bytes
    query: bytes
    script: bytes
    path: bytes
    peer: tuple[str, int]
    port: int
    request_id: bytes


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Status, reason and headers that a program gave; ``length`` is its Content-Length."""

    status: int
    reason: bytes
    headers: tuple[Header, ...]
    length: int | None = None


class BadAnswer(Exception):
    """What the program printed is no answer; the text is for its owner."""


def usable_request_id(value: bytes) -> bool:
    """Whether a client's own request id can be taken over."""
    return _REQUEST_ID.fullmatch(value) is not None


def has_control_bytes(value: bytes) -> bool:
    """Whether a header's value would break a line, or a variable."""
    return _VALUE_BAD.search(value) is not None


def variables(ask: Asking) -> list[bytes]:
    """``NAME=VALUE`` for the program. No value holds a zero byte: header values were checked, paths are here."""
    path = unquote_to_bytes(ask.path).replace(b"\0", b"")
    found = [
        b"GATEWAY_INTERFACE=CGI/1.1",
        b"SERVER_SOFTWARE=corral",
        b"SERVER_PROTOCOL=HTTP/" + ask.version,
        b"SERVER_NAME=" + ask.host.rpartition(b":")[0] if b":" in ask.host else b"SERVER_NAME=" + ask.host,
        b"SERVER_PORT=%d" % ask.port,
        b"REQUEST_METHOD=" + ask.method,
        b"REQUEST_URI=" + ask.target,
        b"SCRIPT_NAME=" + ask.script,
        b"PATH_INFO=" + path,
        b"X_RAW_PATH_INFO=" + ask.path,
        b"QUERY_STRING=" + ask.query,
        b"REMOTE_ADDR=" + ask.peer[0].encode(),
        b"REMOTE_PORT=%d" % ask.peer[1],
        b"HTTP_X_REQUEST_ID=" + ask.request_id,
    ]
    joined: dict[bytes, bytes] = {}
    for name, value in ask.headers:
        variable = _names.get(name) or _variable(name)
        if variable:
            before = joined.get(variable)
            joined[variable] = value if before is None else before + (b"; " if name == b"cookie" else b", ") + value
    found += [name + value for name, value in joined.items()]
    found += [name + b"=" + value for name, value in _forwarding(ask)]
    return found


def forwarding_headers(ask: Asking) -> list[Header]:
    """The request's headers for a program that speaks HTTP: without those of the hop, with who it came from."""
    kept = [
        (name, value)
        for name, value in ask.headers
        if name not in HOP_BY_HOP and name not in _FORWARDING and name not in _OURS and name != b"expect"
    ]
    kept += [(name.removeprefix(b"HTTP_").replace(b"_", b"-").lower(), value) for name, value in _forwarding(ask)]
    return [*kept, (b"x-request-id", ask.request_id)]


def split_head(printed: bytes) -> tuple[bytes, int] | None:
    """The head of what was printed and where the body begins; None while it is not whole. Raises BadAnswer."""
    found = _END_OF_HEAD.search(printed, 0, HEAD_MAX)
    if found is not None:
        return printed[: found.start()], found.end()
    if len(printed) >= HEAD_MAX:
        raise BadAnswer(f"the program printed {HEAD_MAX >> 10} KiB without an empty line after its headers")
    return None


def answer_head(head: bytes) -> AnswerHead:
    """Read ``Status``, ``Location``, ``Content-Type`` and other headers. Raises BadAnswer."""
    status, reason, length = 200, b"OK", None
    headers: list[Header] = []
    given = False
    for line in head.replace(b"\r\n", b"\n").split(b"\n") if head else ():
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        if not colon or _TOKEN.fullmatch(name) is None or has_control_bytes(value):
            raise BadAnswer(f"the program printed a line that is no header: {line[:100]!r}")
        lower = name.lower()
        if lower == b"status":
            status, reason = _status_of(value)
            given = True
        elif lower == b"content-length":
            length = _length_of(value, length)
        elif lower not in HOP_BY_HOP and lower not in _OURS:
            headers.append((name, value))
            if lower == b"location" and not given:
                status, reason = 302, b"Found"
    return AnswerHead(status, reason, tuple(headers), length)


def _status_of(value: bytes) -> tuple[int, bytes]:
    found = _STATUS.fullmatch(value)
    if found is None or int(found[1]) < 200 or int(found[1]) > 599:
        raise BadAnswer(f"the program printed a status that is none of 200 to 599: {value[:50]!r}")
    return int(found[1]), found[2] or b""


def _length_of(value: bytes, before: int | None) -> int:
    if not value.isdigit() or len(value) > 18 or (before is not None and before != int(value)):
        raise BadAnswer(f"the program printed a Content-Length that is no length: {value[:50]!r}")
    return int(value)


def _variable(name: bytes) -> bytes:
    """``HTTP_NAME=`` for a header, b"" for one that is left out."""
    if name in (b"content-type", b"content-length"):
        made = name.upper().replace(b"-", b"_") + b"="
    elif b"_" in name or name == b"proxy" or name in HOP_BY_HOP or name in _OURS or name in _FORWARDING:
        made = b""
    else:
        made = b"HTTP_" + name.upper().replace(b"-", b"_") + b"="
    if len(_names) < _NAMES_MAX:
        _names[name] = made
    return made


def _forwarding(ask: Asking) -> Iterable[Header]:
    hops = [value for name, value in ask.headers if name == b"x-forwarded-for"]
    yield b"HTTP_X_FORWARDED_FOR", b", ".join((*hops, ask.peer[0].encode()))
    yield b"HTTP_X_FORWARDED_HOST", ask.host
    yield b"HTTP_X_FORWARDED_PROTO", b"http"
