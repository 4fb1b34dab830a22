"""Sizes and durations: as people write them, and nothing else."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.kernel.errors import InvalidSpec
from corral.kernel.units import format_duration, format_size, parse_duration_s, parse_size

YEARS_100_S = 100 * 365 * 86_400


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0), ("1", 1), (7, 7), ("10b", 10), ("2GB", 2_000_000_000), ("2gb", 2_000_000_000), ("1k", 1000),
        ("512MiB", 512 * 1024**2), ("1.5 KiB", 1536), ("1Ki", 1024), (" 3 TB ", 3 * 10**12), ("1PiB", 1024**5),
        ("0.1KB", 100), ("9223372036854775807", 2**63 - 1), ("4503599627370497.5k", 4503599627370497500),
    ],
)  # fmt: skip
def test_a_size_is_read(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "1 2", "GB", "2XB", "5i", "5ib", "5 ib", "1e3", "0x10", "nan", "inf", "1,5GB", "1.GB", ".5GB",
     "1_000", "٣", "²", "2GB\0", "2 G B", "8EiB", "9223372036854775808", "9" * 5000, "9" * 400 + ".0", "9PB" * 1000,
     "99999999PiB", -1, 2**63, 10**5000, True],
    ids=itertools.count(),
)  # fmt: skip
def test_what_is_no_size_is_one_short_mistake_that_names_its_field(text: str | int) -> None:
    with pytest.raises(InvalidSpec, match=r"^memory: ") as refused:
        parse_size(text, field="memory")

    assert refused.value.context == {"field": "memory"}
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("90", 90.0), (1.5, 1.5), ("90s", 90.0), ("10m", 600.0), ("1h30m", 5400.0), ("250ms", 0.25),
        ("1d", 86_400.0), ("2w", 1_209_600.0), ("1h 30m 5s", 5405.0), ("1.5h", 5400.0), (" 1H ", 3600.0), 
        ("12 ms", 0.012),
        ("1m1ms", 60.001), ("1e3", 1000.0), ("5200w", 5200 * 604_800.0),
    ],
)  # fmt: skip
def test_a_duration_is_read(text: str | float, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "-5s", "s", "1x", "1m1h", "1s1s", "1 2", "nan", "inf", "-inf", "1h30", "1y", "1,5h", "one hour",
     "5300w", "9" * 5000, "9" * 5000 + "s", "1w" + " " * 5000 + "x", "1s\0",
     float("nan"), float("inf"), -0.5, 10**5000],
    ids=itertools.count(),
)  # fmt: skip
@pytest.mark.timeout(5)
def test_what_is_no_duration_is_one_short_mistake_that_names_its_field(text: str | float) -> None:
    with pytest.raises(InvalidSpec, match=r"^deadline: ") as refused:
        parse_duration_s(text, field="deadline")

    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (200 * 1024, "200 KiB"),
        (1024**3, "1.0 GiB"),
        (64_000_000, "64 MB"),
        (1_500_000_000, "1500 MB"),
        (2_000_000_000_000, "2 TB"),
        (2**63, "8388608 TiB"),
    ],
)
def test_a_size_is_written_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"), (0.0012, "1.2 ms"), (0.0123, "12 ms"), (0.25, "0.2 s"), (59.94, "59.9 s"), (59.96, "1m0s"),
        (90, "1m30s"), (3600, "1h0m"), (86_399.6, "1d0h"), (90_000, "1d1h"),
    ],
)  # fmt: skip
def test_a_duration_is_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 2**63 - 1))
@settings(derandomize=True, deadline=None)
def test_a_bare_number_is_that_many_bytes(size_bytes: int) -> None:
    assert parse_size(size_bytes) == parse_size(str(size_bytes)) == parse_size(f"{size_bytes}B") == size_bytes


@given(st.integers(0, 2**40), st.sampled_from(["k", "m", "g", "t"]), st.booleans())
@settings(derandomize=True, deadline=None)
def test_a_unit_multiplies(number: int, unit: str, binary: bool) -> None:
    power = "kmgt".index(unit) + 1
    expected = number * (1024 if binary else 1000) ** power
    text = f"{number}{unit}{'ib' if binary else 'b'}"
    if expected < 2**63:
        assert parse_size(text) == parse_size(text.upper()) == expected
    else:
        with pytest.raises(InvalidSpec):
            parse_size(text)


@given(st.integers(0, 2**60))
@settings(derandomize=True, deadline=None)
def test_a_written_size_reads_as_nearly_the_same(size_bytes: int) -> None:
    assert abs(parse_size(format_size(size_bytes)) - size_bytes) <= max(1.0, size_bytes * 0.05)


@given(st.floats(0, YEARS_100_S))
@settings(derandomize=True, deadline=None)
def test_a_written_duration_reads_as_nearly_the_same(seconds: float) -> None:
    assert parse_duration_s(format_duration(seconds)) == pytest.approx(seconds, rel=0.3, abs=0.0001)


@given(st.floats(0, YEARS_100_S))
@settings(derandomize=True, deadline=None)
def test_a_bare_number_is_that_many_seconds(seconds: float) -> None:
    assert parse_duration_s(seconds) == parse_duration_s(repr(seconds)) == seconds


@given(st.text(max_size=200))
@settings(derandomize=True, deadline=None)
def test_any_text_is_a_value_in_range_or_a_mistake_of_the_caller(text: str) -> None:
    parsers: tuple[tuple[Callable[[str], float], float], ...] = (
        (parse_size, 2**63 - 1),
        (parse_duration_s, YEARS_100_S),
    )
    for parse, largest in parsers:
        try:
            value = parse(text)
        except InvalidSpec as refused:
            assert len(refused.message) < 300
        else:
            assert 0 <= value <= largest
