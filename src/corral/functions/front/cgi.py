"""A request as CGI variables (RFC 3875, as WAGI has them), and the head of an answer from what a program printed.

Pure, and strict: nothing that a client or a program writes becomes a header or a variable of somebody else. Header
names with "_" are left out (they would look like those with "-"), and so is ``Proxy`` (programs take HTTP_PROXY for
their own setting).
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from corral.functions.traces import Parent, parent_of

HEAD_MAX: Final = 64 * 1024
"""Bytes of the head that a program may print."""

Header = tuple[bytes, bytes]
HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
HOP: Final = b"x-corral-hop"
"""Another front has routed this request already: an instance of this worker answers it, or nobody."""
OURS: Final = frozenset((b"x-request-id", b"x-corral-revision", b"x-corral-instance", b"x-corral-start", HOP))
_FORWARDING: Final = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"))
_NOT_PASSED_ON: Final = frozenset((b"expect", b"traceparent"))
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE_BAD: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n|\A\r?\n")
_STATUS: Final = re.compile(rb"([1-9][0-9][0-9])(?: ([\x20-\x7e\x80-\xff]{0,200}))?")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_names: dict[bytes, bytes] = {}
_NAMES_MAX: Final = 4096
_heads: dict[bytes, "AnswerHead"] = {}
_KNOWN_HEADS: Final = 1024
_KNOWN_HEAD_MAX: Final = 512


class Said(msgspec.Struct, frozen=True):
    """What the headers of a request say. A client that keeps its connection mostly says the same again, so this is
    made once for many requests.

    Attributes:
        variables: the headers, and who is at the other end, as variables; each with a zero byte behind it.
        request_id: a usable one that the client gave, or b"".
        length: of the body; None when it is chunked.
        traced: a trace is asked for, by the caller's sampling or by name; ``parent`` is the caller's span.
        traceparent: as it came.
    """

    headers: Sequence[Header]
    host: bytes
    variables: bytes
    request_id: bytes
    length: int | None
    expects: bool
    traced: bool
    hop: bool
    parent: Parent | None
    traceparent: bytes


class Asking(msgspec.Struct):
    """A request as it came, and where it goes: ``script`` and ``path`` are set when that is known.

    ``traceparent`` is the caller's, or ours for a request that is traced; ``came_s`` of ``time.perf_counter``.
    """

    method: bytes
    target: bytes
    version: bytes
    said: Said
    query: bytes
    script: bytes
    path: bytes
    peer: str
    request_id: bytes
    traceparent: bytes = b""
    came_s: float = 0.0


class AnswerHead(msgspec.Struct, frozen=True):
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


def said(headers: Sequence[Header], *, peer: tuple[str, int], port: int, version: bytes) -> Said | None:
    """Read the headers; None when they are no request's."""
    names: dict[bytes, bytes] = {}
    for name, value in headers:
        if has_control_bytes(value) or (name in (b"host", b"content-length") and name in names):
            return None
        names[name] = value
    host = names.get(b"host", b"")
    if not host and version != b"1.0":
        return None
    given = names.get(b"x-request-id", b"")
    parent = parent_of(names[b"traceparent"]) if b"traceparent" in names else None
    return Said(
        headers,
        host,
        _header_variables(headers, host, peer, port, version),
        given if usable_request_id(given) else b"",
        None if b"transfer-encoding" in names else int(names.get(b"content-length", b"0")),
        names.get(b"expect", b"").lower() == b"100-continue",
        b"x-corral-trace" in names or (parent is not None and parent.sampled),
        HOP in names,
        parent,
        names.get(b"traceparent", b""),
    )


def _header_variables(
    headers: Sequence[Header], host: bytes, peer: tuple[str, int], port: int, version: bytes
) -> bytes:
    name = host.rpartition(b":")[0] if host.rpartition(b":")[2].isdigit() else host
    found = [
        b"GATEWAY_INTERFACE=CGI/1.1\0SERVER_SOFTWARE=corral\0SERVER_PROTOCOL=HTTP/%b\0" % version,
        b"SERVER_NAME=%b\0SERVER_PORT=%d\0" % (name, port),
        b"REMOTE_ADDR=%b\0REMOTE_PORT=%d\0" % (peer[0].encode(), peer[1]),
    ]
    joined: dict[bytes, bytes] = {}
    for header, value in headers:
        variable = _variable(header)
        if variable:
            before = joined.get(variable)
            joined[variable] = value if before is None else before + (b"; " if header == b"cookie" else b", ") + value
    found += [b"%b%b\0" % each for each in joined.items()]
    found += [
        b"HTTP_%b=%b\0" % (header.upper().replace(b"-", b"_"), value)
        for header, value in _forwarding(headers, host, peer[0])
    ]
    return b"".join(found)


def variables(ask: Asking) -> bytes:
    """``NAME=VALUE`` for the program, each with a zero byte behind it, which no value holds."""
    path = ask.path
    if b"%" in path:
        path = unquote_to_bytes(path).replace(b"\0", b"")
    traced = b"HTTP_TRACEPARENT=%b\0" % ask.traceparent if ask.traceparent else b""
    return traced + (
        b"%bREQUEST_METHOD=%b\0REQUEST_URI=%b\0SCRIPT_NAME=%b\0PATH_INFO=%b\0X_RAW_PATH_INFO=%b\0QUERY_STRING=%b\0"
        b"HTTP_X_REQUEST_ID=%b\0"
    ) % (ask.said.variables, ask.method, ask.target, ask.script, path, ask.path, ask.query, ask.request_id)


def forwarding_headers(ask: Asking) -> list[Header]:
    """The request's headers for a program that speaks HTTP: without those of the hop, with who it came from."""
    kept = [
        (name, value)
        for name, value in ask.said.headers
        if name not in HOP_BY_HOP and name not in _FORWARDING and name not in OURS and name not in _NOT_PASSED_ON
    ]
    if ask.traceparent:
        kept.append((b"traceparent", ask.traceparent))
    kept += _forwarding(ask.said.headers, ask.said.host, ask.peer)
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
    known = _heads.get(head)
    if known is None:
        known = _read_head(head)
        if len(head) <= _KNOWN_HEAD_MAX:
            if len(_heads) >= _KNOWN_HEADS:
                _heads.clear()
            _heads[head] = known
    return known


def _read_head(head: bytes) -> AnswerHead:
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
        elif lower not in HOP_BY_HOP and lower not in OURS:
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
    known = _names.get(name)
    if known is not None:
        return known
    if name in (b"content-type", b"content-length"):
        made = name.upper().replace(b"-", b"_") + b"="
    elif (
        b"_" in name
        or name == b"proxy"
        or name in HOP_BY_HOP
        or name in OURS
        or name in _FORWARDING
        or name == b"traceparent"
    ):
        made = b""
    else:
        made = b"HTTP_" + name.upper().replace(b"-", b"_") + b"="
    if len(_names) < _NAMES_MAX:
        _names[name] = made
    return made


def _forwarding(headers: Sequence[Header], host: bytes, peer: str) -> Iterable[Header]:
    hops = [value for name, value in headers if name == b"x-forwarded-for"]
    yield b"x-forwarded-for", b", ".join((*hops, peer.encode()))
    yield b"x-forwarded-host", host
    yield b"x-forwarded-proto", b"http"
