"""When a child that died is started again, and when a person is needed."""

from corral.app.config_sections import SupervisorConfig
from corral.app.supervision import GiveUp, Restarts, StartAgain, died

CONFIG = SupervisorConfig(backoff_s=0.5, backoff_max_s=3.0, restarts=4, restarts_within_s=60.0)


def decisions(*lives: tuple[float, float]) -> list[StartAgain | GiveUp]:
    """What is decided after each of these lives, from and to."""
    history, found = Restarts(), []
    for started_s, now_s in lives:
        history, decision = died(history, started_s=started_s, now_s=now_s, config=CONFIG)
        found.append(decision)
    return found


def test_a_child_that_dies_at_once_is_started_after_ever_longer_pauses_up_to_a_bound() -> None:
    assert decisions((0, 1), (2, 3), (4, 5), (6, 7)) == [StartAgain(0.5), StartAgain(1), StartAgain(2), StartAgain(3)]


def test_a_child_that_lived_is_started_soon_again() -> None:
    assert decisions((0, 1), (2, 3), (4, 20))[-1] == StartAgain(0.5)


def test_a_child_that_died_too_often_within_the_window_is_given_up() -> None:
    often = [(2 * start_s, 2 * start_s + 1) for start_s in range(5)]

    assert decisions(*often)[-1] == GiveUp(4)


def test_deaths_of_long_ago_do_not_count() -> None:
    seldom = [(20.0 * start_s, 20.0 * start_s + 1) for start_s in range(20)]

    assert GiveUp(4) not in decisions(*seldom)
