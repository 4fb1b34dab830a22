"""The check for requests that went astray can fail."""

from corral.testing.function_load import Answer, Record, Turn

V1, V2, BOTH = frozenset({"v1"}), frozenset({"v2"}), frozenset({"v1", "v2"})
TURNS = [Turn(0.0, 1.0, "", frozenset(), V1), Turn(5.0, 6.0, "", V1, V2), Turn(8.0, 9.0, "", V2, BOTH)]


def astray(begin_s: float, end_s: float, revision: str, body: str = "") -> bool:
    record = Record(answers=[Answer(begin_s, end_s, 200, revision, body or revision)], turns=TURNS)
    return bool(record.misrouted())


def test_before_and_during_a_change_either_side_may_answer_and_afterwards_only_the_new_one() -> None:
    assert [astray(2.0, 3.0, each) for each in ("v1", "v2", "v3")] == [False, True, True]
    assert [astray(4.0, 5.5, each) for each in ("v1", "v2")] == [False, False]
    assert [astray(5.2, 5.5, each) for each in ("v1", "v2")] == [False, False]
    assert [astray(6.5, 7.0, each) for each in ("v1", "v2")] == [True, False]
    assert [astray(6.5, 8.5, each) for each in ("v1", "v2")] == [False, False]
    assert [astray(20.0, 21.0, each) for each in ("v1", "v2", "v3")] == [False, False, True]


def test_an_answer_whose_body_is_of_another_revision_is_astray() -> None:
    assert astray(2.0, 3.0, "v1", body="v2")


def test_a_request_that_was_not_answered_well_has_failed() -> None:
    record = Record(answers=[Answer(2.0, 3.0, 503, "", ""), Answer(2.0, 3.0, 200, "v1", "v1")], turns=TURNS)

    assert [each.status for each in record.failed()] == [503]
