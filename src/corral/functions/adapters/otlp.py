"""Traces for a collector, by OTLP over HTTP: the SDK's own exporter, batches and retries.

Spans are over when they come here, so they are not started with a tracer: they are given to the SDK's processor as what
it takes from one. Only who has a collector imports this.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from corral import __version__
from corral.functions.traces import Trace

_PATH: Final = "/v1/traces"
_FLUSH_MS: Final = 3000
_STEP_IDS: Final = 0x9E37_79B9_7F4A_7C15  # odd: distinct steps of a request get distinct ids
_NS: Final = 1_000_000_000


@asynccontextmanager
async def exporting(endpoint: str, *, worker: str) -> AsyncIterator[Callable[[Trace], None]]:
    """Send traces to ``endpoint`` (``http(s)://host:4318``) while the block lasts."""
    resource = Resource.create(
        {"service.name": "corral.functions", "service.version": __version__, "service.instance.id": worker}
    )
    processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + _PATH))

    def export(trace: Trace) -> None:
        for span in spans_of(trace, resource):
            processor.on_end(span)

    try:
        yield export
    finally:
        await asyncio.to_thread(processor.force_flush, _FLUSH_MS)
        await asyncio.to_thread(processor.shutdown)


def spans_of(trace: Trace, resource: Resource) -> list[ReadableSpan]:
    """The request as a server's span, and its steps below it."""
    own = _context(trace, int(trace.span_id, 16))
    parent = _context(trace, int(trace.parent_id, 16), remote=True) if trace.parent_id else None
    function = trace.key.function
    attributes: dict[str, str | int | bool] = {
        "http.request.method": trace.method,
        "url.path": trace.path.partition("?")[0],
        "http.response.status_code": trace.status,
        "faas.name": function.name,
        "faas.version": trace.key.revision,
        "faas.instance": trace.instance,
        "faas.coldstart": trace.cold,
        "corral.tenant": function.tenant,
        "corral.request_id": trace.request_id,
    }
    whole = ReadableSpan(
        name=f"{trace.method} {function.name}",
        context=own,
        parent=parent,
        resource=resource,
        attributes=attributes,
        kind=SpanKind.SERVER,
        status=Status(StatusCode.UNSET if 0 < trace.status < 500 else StatusCode.ERROR),
        start_time=int(trace.at_s * _NS),
        end_time=int((trace.at_s + trace.duration_s) * _NS),
    )
    steps = [
        ReadableSpan(
            name=step.name,
            context=_context(trace, (own.span_id ^ (_STEP_IDS * (number + 1))) & (2**64 - 1)),
            parent=own,
            resource=resource,
            start_time=int((trace.at_s + step.start_s) * _NS),
            end_time=int((trace.at_s + step.start_s + step.duration_s) * _NS),
        )
        for number, step in enumerate(trace.spans)
    ]
    return [whole, *steps]


def _context(trace: Trace, span_id: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(int(trace.trace_id, 16), span_id, is_remote=remote, trace_flags=TraceFlags(TraceFlags.SAMPLED))
