"""When a revision may start again, and when it is broken."""

from corral.functions.config import FunctionsConfig
from corral.functions.scaling import Health, became_ready, counted, start_failed

CONFIG = FunctionsConfig(backoff_first_s=1.0, backoff_last_s=8.0, breaker_failures=3, breaker_window_s=10.0)


def failed(health: Health, *, at_s: float, blame: bool = True) -> Health:
    return start_failed(health, blame=blame, text="it traps", now_s=at_s, config=CONFIG)


def pauses(*, blame: bool, rounds: int) -> list[float]:
    """Of starts that fail as soon as they are allowed."""
    health, now_s, found = Health(), 100.0, []
    for _ in range(rounds):
        health = failed(health, at_s=now_s, blame=blame)
        found.append(health.retry_at_s - now_s)
        now_s = health.retry_at_s
    return found


def test_pauses_double_up_to_the_longest() -> None:
    assert pauses(blame=False, rounds=6) == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_instances_that_end_together_are_one_failure() -> None:
    health = Health()
    for _ in range(20):
        health = failed(health, at_s=5.0)

    assert (health.failures, health.blamed, health.retry_at_s, health.broken) == (1, 1, 6.0, "")


def test_so_many_rounds_by_its_own_fault_break_a_revision_and_others_never_do() -> None:
    own, others = Health(), Health()
    for number in range(3):
        own = failed(own, at_s=100.0 * number)
        others = failed(others, at_s=100.0 * number, blame=False)

    assert "it traps" in own.broken
    assert others.broken == ""


def test_one_that_ends_soon_after_each_start_waits_longer_each_time_and_one_that_was_well_does_not() -> None:
    looping = well = Health()
    for number in range(3):
        looping = failed(became_ready(looping, now_s=50.0 * number), at_s=50.0 * number + 1.0, blame=False)
        well = failed(became_ready(well, now_s=50.0 * number), at_s=50.0 * number + 11.0, blame=False)

    assert looping.retry_at_s - 101.0 == 4.0
    assert well.retry_at_s - 111.0 == 1.0


def test_a_start_that_succeeds_forgives_those_that_failed() -> None:
    health = became_ready(failed(failed(Health(), at_s=1.0), at_s=10.0), now_s=20.0)

    assert (health.blamed, health.last_failure, health.broken) == (0, "", "")


def test_bad_requests_long_ago_do_not_count() -> None:
    health = counted(Health(), requests=0, bad=0, now_s=0.0, config=CONFIG)
    health = counted(health, requests=15, bad=15, now_s=1.0, config=CONFIG)

    health = counted(health, requests=30, bad=30, now_s=50.0, config=CONFIG)

    assert health.broken == ""
    assert counted(health, requests=51, bad=51, now_s=51.0, config=CONFIG).broken != ""
