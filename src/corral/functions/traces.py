"""What one request went through, as a trace: when it was routed, waited, was instantiated and ran. Pure.

Names and numbers are those of W3C Trace Context and OpenTelemetry: a trace has 16 bytes, a span 8, written in hex. The
front makes a trace when its caller samples it (``traceparent``) or asks for it (``x-corral-trace``); the worker sends
it to the owner's log, as a line of the stream ``trace``, and to a collector where there is one.
"""

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from corral.functions.model import RevisionKey

STREAM: Final = "trace"
"""Of the log lines that hold traces."""
SPANS: Final = ("route", "queue", "instantiate", "run")
_PARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One step; ``start_s`` counts from the beginning of the trace."""

    name: str
    start_s: float
    duration_s: float


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    Attributes:
        trace_id, span_id: of the request; ``parent_id`` is the caller's span, or "".
        at_s: Unix seconds when it came; ``duration_s`` until its answer was given.
        status: of the answer; 0 when it was cut off or nobody waited for it.
        cold: it waited for an instance.
        spans: its steps, in order.
    """

    trace_id: str
    span_id: str
    parent_id: str = ""
    key: RevisionKey
    request_id: str
    instance: str = ""
    method: str = ""
    path: str = ""
    status: int = 0
    cold: bool = False
    at_s: float
    duration_s: float
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Parent:
    """What a caller's ``traceparent`` says."""

    trace_id: str
    span_id: str
    sampled: bool


def parent_of(header: bytes) -> Parent | None:
    """Read ``traceparent``; None for one that is none, which is then left alone."""
    found = _PARENT.fullmatch(header)
    if found is None or header.startswith(b"ff") or found[1] == _NO_TRACE or found[2] == _NO_SPAN:
        return None
    return Parent(found[1].decode(), found[2].decode(), bool(int(found[3], 16) & 1))


def traceparent(trace_id: str, span_id: str) -> bytes:
    """The header for whoever is called within this span."""
    return f"00-{trace_id}-{span_id}-01".encode()


def steps(*, routed_s: float, began_s: float, instantiate_s: float, ended_s: float) -> tuple[Span, ...]:
    """The steps of a request by the seconds at which it was routed, given to an instance, and ended.

    What never began is left out: a request that was refused in the queue has no "run".
    """
    spans = [Span(name="route", start_s=0.0, duration_s=routed_s)]
    if began_s < routed_s:
        return (*spans, Span(name="queue", start_s=routed_s, duration_s=ended_s - routed_s))
    entered_s = min(began_s + instantiate_s, ended_s)
    return (
        *spans,
        Span(name="queue", start_s=routed_s, duration_s=began_s - routed_s),
        Span(name="instantiate", start_s=began_s, duration_s=entered_s - began_s),
        Span(name="run", start_s=entered_s, duration_s=ended_s - entered_s),
    )
