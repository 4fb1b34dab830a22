"""Traces: what a request went through, in the owner's log, at whoever the function calls, and at a collector."""

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from corral.functions.adapters.otlp import exporting
from corral.functions.model import Limits
from corral.functions.traces import STREAM, Trace
from corral.testing import wasm_programs as programs
from corral.testing.function_rig import FunctionRig, open_rig
from corral.testing.wasm_programs import assemble

pytestmark = pytest.mark.asyncio(loop_scope="module")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def traceparent(flags: str = "01") -> str:
    return f"Traceparent: 00-{TRACE}-{SPAN}-{flags}\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FunctionRig]:
    async with open_rig(tmp_path_factory.mktemp("fn")) as opened:
        await opened.deploy("hello", await opened.spec(assemble(programs.hello())))
        await opened.deploy("env", await opened.spec(assemble(programs.ENVIRONMENT)))
        yield opened


async def trace_of(rig: FunctionRig, request_id: str) -> Trace:
    def found() -> list[Trace]:
        lines = [each for each in rig.lines if each.stream == STREAM and each.request_id == request_id]
        return [msgspec.json.decode(each.text, type=Trace) for each in lines]

    await rig.until(found)
    return found()[0]


async def test_a_sampled_request_leaves_its_four_steps_in_the_log_of_its_owner(rig: FunctionRig) -> None:
    answer = await rig.get("/functions/hello/a?b=c", headers=traceparent() + "X-Request-Id: sampled\r\n")

    trace = await trace_of(rig, "sampled")
    assert (trace.trace_id, trace.parent_id, trace.status) == (TRACE, SPAN, 200)
    assert (trace.method, trace.path, trace.key.revision) == ("GET", "/functions/hello/a?b=c", "v1")
    assert trace.instance == answer.headers["x-corral-instance"]
    assert [each.name for each in trace.spans] == ["route", "queue", "instantiate", "run"]
    assert all(each.duration_s >= 0 for each in trace.spans)
    last = trace.spans[-1]
    assert trace.duration_s == pytest.approx(last.start_s + last.duration_s)
    assert answer.headers["x-corral-trace"] == TRACE


async def test_whoever_asks_by_name_gets_a_trace_of_their_own(rig: FunctionRig) -> None:
    answer = await rig.get("/functions/hello", headers="X-Corral-Trace: 1\r\n")

    trace = await trace_of(rig, answer.headers["x-request-id"])
    assert (trace.trace_id, trace.parent_id) == (answer.headers["x-corral-trace"], "")


async def test_the_program_is_told_the_span_that_it_runs_in(rig: FunctionRig) -> None:
    answer = await rig.get("/functions/env", headers=traceparent() + "X-Request-Id: told\r\n")

    trace = await trace_of(rig, "told")
    assert f"HTTP_TRACEPARENT=00-{TRACE}-{trace.span_id}-01" in answer.body.decode().split("\0")


@pytest.mark.parametrize(
    "header",
    ["", traceparent("00"), "Traceparent: nonsense\r\n", f"Traceparent: 00-{'0' * 32}-{SPAN}-01\r\n"],
)
async def test_a_request_that_nobody_samples_is_not_traced_and_its_header_is_left_as_it_is(
    rig: FunctionRig, header: str
) -> None:
    answer = await rig.get("/functions/env", headers=header)

    assert "x-corral-trace" not in answer.headers
    given = header.partition(": ")[2].strip()
    told = [each for each in answer.body.decode().split("\0") if each.startswith("HTTP_TRACEPARENT=")]
    assert told == ([f"HTTP_TRACEPARENT={given}"] if given else [])


async def test_a_request_that_waits_in_vain_has_no_run_and_one_that_traps_ends_in_502(rig: FunctionRig) -> None:
    await rig.deploy("asleep", await rig.spec(assemble(programs.hello()), limits=Limits(queue_s=0.1)), replicas=0)
    await rig.deploy("traps", await rig.spec(assemble(programs.TRAP)))
    for name in ("asleep", "traps"):
        await rig.get(f"/functions/{name}", headers=f"X-Corral-Trace: 1\r\nX-Request-Id: {name}\r\n")

    asleep, traps = await trace_of(rig, "asleep"), await trace_of(rig, "traps")
    assert ([each.name for each in asleep.spans], asleep.status, asleep.cold) == (["route", "queue"], 503, True)
    assert asleep.spans[1].duration_s > 0.05  # a timer may be early by a tick
    assert ([each.name for each in traps.spans][-1], traps.status) == ("run", 502)


async def test_callers_cannot_flood_an_owners_log_with_traces(rig: FunctionRig) -> None:
    await rig.deploy("flooded", await rig.spec(assemble(programs.hello())))
    request = b"GET /functions/flooded HTTP/1.1\r\nHost: a\r\nX-Corral-Trace: 1\r\n\r\n" * 7

    answers = await rig.raw(request * 8 + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

    assert answers.body.count(b"hello, world") == 56
    await rig.until(lambda: any(each.key.function.name == "flooded" for each in rig.lines))
    traced = [each for each in rig.lines if each.key.function.name == "flooded" and each.stream == STREAM]
    assert 0 < len(traced) < 56


class Collector(BaseHTTPRequestHandler):
    """Keeps what it is sent."""

    received: "list[tuple[str, bytes]]"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Collector)
    server.received = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_collector_gets_the_request_as_a_span_of_its_caller_with_its_steps_below(
    rig: FunctionRig, collector: HTTPServer
) -> None:
    await rig.get("/functions/hello", headers=traceparent() + "X-Request-Id: exported\r\n")
    trace = await trace_of(rig, "exported")

    async with exporting(f"http://127.0.0.1:{collector.server_port}", worker="wrk_1") as export:
        export(trace)

    (path, body) = collector.received[0]  # type: ignore[attr-defined]
    assert path == "/v1/traces"
    resource = ExportTraceServiceRequest.FromString(body).resource_spans[0]
    spans = list(resource.scope_spans[0].spans)
    whole, *steps = spans
    assert {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"] == (
        "corral.functions"
    )
    assert (whole.name, whole.trace_id.hex(), whole.parent_span_id.hex()) == ("GET hello", TRACE, SPAN)
    assert [each.name for each in steps] == ["route", "queue", "instantiate", "run"]
    assert {each.parent_span_id for each in steps} == {whole.span_id}
    assert len({each.span_id for each in spans}) == 5
    assert whole.start_time_unix_nano <= steps[0].start_time_unix_nano
    assert steps[-1].end_time_unix_nano <= whole.end_time_unix_nano + 1000
