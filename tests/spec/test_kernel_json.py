"""What is said of JSON that strangers wrote."""

import msgspec
import pytest

from corral.kernel.json import MALFORMED, why_malformed


class Row(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    count: int | None = None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a=b", "invalid character (byte 0)"),
        (b'{"name": ', "input data was truncated"),
        (b'{"name": "\xff"}', "it is not UTF-8"),
        (b'{"name": 3}', "expected a string, got a whole number - at $.name"),
        (b'{"name": "a", "count": "b"}', "expected a whole number or null, got a string - at $.count"),
        (b"[]", "expected an object, got a list"),
        (b"{}", "object missing required field name"),
    ],
)
def test_a_mistake_in_json_is_told_in_words_of_json(text: bytes, why: str) -> None:
    with pytest.raises(MALFORMED) as refused:
        msgspec.json.decode(text, type=Row)

    assert why_malformed(refused.value) == why


def test_brackets_without_end_are_a_mistake_like_any_other() -> None:
    with pytest.raises(MALFORMED) as refused:
        msgspec.json.decode(b"[" * 100_000)

    assert why_malformed(refused.value) == "it is nested too deeply"
