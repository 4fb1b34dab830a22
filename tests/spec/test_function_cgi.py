"""Requests as variables, answers from what programs print, and who may enter: the front's pure parts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.functions import frames
from corral.functions.front.admission import Admission
from corral.functions.front.cgi import (
    HEAD_MAX,
    Asking,
    BadAnswer,
    Header,
    Said,
    answer_head,
    forwarding_headers,
    said,
    split_head,
    variables,
)
from corral.functions.front.limits import FrontConfig
from corral.functions.model import Limits

PEER = ("192.0.2.1", 4711)


def heard(*headers: Header) -> Said | None:
    return said([(b"host", b"example.org:8080"), *headers], peer=PEER, port=8080, version=b"1.1")


def asked(*headers: Header, path: bytes = b"/x", query: bytes = b"") -> Asking:
    known = heard(*headers)
    assert known is not None
    return Asking(b"GET", b"/functions/f" + path, b"1.1", known, query, b"/functions/f", path, PEER[0], b"req_1")


def world(ask: Asking) -> dict[bytes, bytes]:
    return dict(each.split(b"=", 1) for each in variables(ask).split(b"\0")[:-1])


class TestVariables:
    def test_a_request_has_those_of_cgi(self) -> None:
        found = world(asked((b"content-type", b"a/b"), (b"accept", b"*/*"), path=b"/a%2Fb%20c", query=b"q=1"))

        assert found[b"PATH_INFO"] == b"/a/b c"
        assert found[b"X_RAW_PATH_INFO"] == b"/a%2Fb%20c"
        assert found[b"QUERY_STRING"] == b"q=1"
        assert found[b"CONTENT_TYPE"] == b"a/b"
        assert found[b"HTTP_ACCEPT"] == b"*/*"
        assert (found[b"SERVER_NAME"], found[b"SERVER_PORT"]) == (b"example.org", b"8080")
        assert (found[b"REMOTE_ADDR"], found[b"SCRIPT_NAME"]) == (b"192.0.2.1", b"/functions/f")

    def test_values_of_one_name_are_joined_and_cookies_by_semicolons(self) -> None:
        found = world(asked((b"x-a", b"1"), (b"cookie", b"a=b"), (b"x-a", b"2"), (b"cookie", b"c=d")))

        assert (found[b"HTTP_X_A"], found[b"HTTP_COOKIE"]) == (b"1, 2", b"a=b; c=d")

    @pytest.mark.parametrize("name", [b"proxy", b"x_forwarded_for", b"connection", b"te", b"x-corral-hop", b"upgrade"])
    def test_headers_that_could_deceive_a_program_are_left_out(self, name: bytes) -> None:
        assert b"evil" not in variables(asked((name, b"evil")))

    def test_who_forwarded_before_stays_in_front_of_us(self) -> None:
        assert world(asked((b"x-forwarded-for", b"203.0.113.9")))[b"HTTP_X_FORWARDED_FOR"] == b"203.0.113.9, 192.0.2.1"

    def test_an_encoded_zero_byte_makes_no_variable_of_its_own(self) -> None:
        found = world(asked(path=b"/a%00EVIL=1"))

        assert found[b"PATH_INFO"] == b"/aEVIL=1"
        assert b"EVIL" not in found

    @pytest.mark.parametrize(
        "headers",
        [((b"x", b"a\rb"),), ((b"x", b"a\nb"),), ((b"x", b"a\0b"),), ((b"host", b"twice"),)],
    )
    def test_control_bytes_and_a_second_host_are_no_request(self, headers: tuple[Header, ...]) -> None:
        assert heard(*headers) is None

    @settings(derandomize=True, deadline=None)
    @given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=8), st.binary(max_size=20))
    def test_whatever_comes_every_variable_is_one(self, headers: list[Header], path: bytes) -> None:
        known = said([(b"host", b"h"), *headers], peer=PEER, port=1, version=b"1.1")
        if known is None or any(b"\0" in name or b"=" in name for name, _ in headers) or b"\0" in path:
            return

        ask = Asking(b"GET", b"/", b"1.1", known, b"", b"", path, PEER[0], b"req_1")

        assert all(b"=" in each for each in variables(ask).split(b"\0")[:-1])

    def test_a_component_gets_the_headers_without_those_of_the_hop(self) -> None:
        found = forwarding_headers(
            asked((b"accept", b"*/*"), (b"te", b"x"), (b"x-corral-hop", b"1"), (b"expect", b"y"))
        )

        assert [name for name, _ in found] == [
            b"host",
            b"accept",
            b"x-forwarded-for",
            b"x-forwarded-host",
            b"x-forwarded-proto",
            b"x-request-id",
        ]


class TestAnswers:
    @pytest.mark.parametrize(
        ("head", "status", "reason", "length"),
        [
            (b"", 200, b"OK", None),
            (b"Content-Type: a/b", 200, b"OK", None),
            (b"Status: 404 Not Here\r\nX: y", 404, b"Not Here", None),
            (b"Status: 201", 201, b"", None),
            (b"Location: /x", 302, b"Found", None),
            (b"Status: 201\nLocation: /x", 201, b"", None),
            (b"content-length:  7 ", 200, b"OK", 7),
        ],
    )
    def test_a_head_is_read(self, head: bytes, status: int, reason: bytes, length: int | None) -> None:
        found = answer_head(head)

        assert (found.status, found.reason, found.length) == (status, reason, length)

    @pytest.mark.parametrize(
        "head",
        [
            b"no colon",
            b"Bad Name: x",
            b": x",
            b"X: a\rb",
            b"X: a\0b",
            b"Status: 99",
            b"Status: 100",
            b"Status: 700",
            b"Status: 200 a\x01b",
            b"Content-Length: -1",
            b"Content-Length: 1\nContent-Length: 2",
            b" folded: x",
        ],
    )
    def test_what_is_no_head_is_refused(self, head: bytes) -> None:
        with pytest.raises(BadAnswer):
            answer_head(head)

    def test_a_program_cannot_set_what_the_front_says(self) -> None:
        head = answer_head(b"X-Corral-Revision: v9\nTransfer-Encoding: chunked\nConnection: close\nX-Mine: 1")

        assert head.headers == ((b"X-Mine", b"1"),)

    def test_a_head_is_whole_at_the_first_empty_line(self) -> None:
        assert split_head(b"A: b\r\n") is None
        assert split_head(b"A: b\r\n\r\nbody\n\n") == (b"A: b", 8)
        assert split_head(b"A: b\n\nbody") == (b"A: b", 6)
        assert split_head(b"\nbody") == (b"", 1)

    def test_a_head_without_an_end_is_refused_at_its_limit(self) -> None:
        with pytest.raises(BadAnswer):
            split_head(b"x" * HEAD_MAX)


class TestFrames:
    def test_a_call_counts_its_variables(self) -> None:
        data = frames.call_frame(7, b"fni_1", 1500, b"A=1\0B=2\0", flags=frames.LAST)

        size, kind, flags, _, stream = frames.HEAD.unpack_from(data)
        assert (size, kind, flags, stream) == (len(data) - frames.HEAD.size, frames.CALL, frames.LAST, 7)
        assert data.endswith(b"fni_1" + b"\2\0\0\0" + b"A=1\0B=2\0")

    def test_an_outcome_that_is_none_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="99"):
            frames.ended_of(bytes((99,)) + bytes(39))


class TestAdmission:
    def test_places_are_counted_by_instance(self) -> None:
        admission: Admission[str] = Admission(Limits(concurrency=2), 0.0)

        for instance in "aab":
            admission.enter(instance)

        assert (admission.has_room("a"), admission.has_room("b"), admission.total) == (False, True, 3)
        admission.leave("a")
        assert admission.has_room("a")

    def test_the_queue_has_an_end(self) -> None:
        admission: Admission[str] = Admission(Limits(queue=2), 0.0)

        assert [admission.wait(each) for each in "abc"] == [True, True, False]

    @settings(derandomize=True, deadline=None)
    @given(st.lists(st.floats(0, 0.5), max_size=60), st.floats(0.5, 50))
    def test_no_second_has_more_requests_than_the_rate_and_its_burst(self, pauses: list[float], rate: float) -> None:
        admission: Admission[str] = Admission(Limits(requests_per_s=rate), 0.0)
        now_s, let_in = 0.0, 0

        for pause in pauses:
            now_s += pause
            let_in += admission.within_rate(now_s)

        assert let_in <= max(1.0, rate) + now_s * rate + 1e-6


@pytest.mark.parametrize(
    ("public", "address"),
    [
        ("", ""),
        ("10.0.0.1", "10.0.0.1:7080"),
        ("10.0.0.1:99", "10.0.0.1:99"),
        ("worker.example", "worker.example:7080"),
    ],
)
def test_other_fronts_are_told_an_address_with_a_port(public: str, address: str) -> None:
    assert FrontConfig(public=public).public_address(7080) == address
