"""How a run ends: what each error means, which of several wins, that the first end stands."""

import pytest

from corral.kernel.errors import (
    BlobCorrupt,
    CorralError,
    InvalidSpec,
    PoolExhausted,
    QuotaExceeded,
    SandboxFailed,
    SandboxLost,
    StoreUnavailable,
    TooLarge,
)
from corral.tasks.model import Phase, Reason
from corral.tasks.stages import Ending, Resolution, RunEnded, aborted, failure_of, most_telling


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidSpec("x"), Reason.MALFORMED_PAYLOAD),
        (TooLarge("x"), Reason.MALFORMED_PAYLOAD),
        (QuotaExceeded("x"), Reason.RESOURCE_UNAVAILABLE),
        (PoolExhausted("x"), Reason.INTERMITTENT_TASK),
        (SandboxFailed("x"), Reason.INTERMITTENT_TASK),
        (SandboxLost("x"), Reason.INTERMITTENT_TASK),
        (StoreUnavailable("x"), Reason.INTERMITTENT_TASK),
        (BlobCorrupt("x"), Reason.INTERNAL_ERROR),
        (ZeroDivisionError("x"), Reason.INTERNAL_ERROR),
        (RunEnded(Reason.SUPERSEDED, "x"), Reason.SUPERSEDED),
    ],
)
def test_every_error_means_one_reason(error: Exception, reason: Reason) -> None:
    assert failure_of(error).reason is reason


def test_only_what_we_did_not_foresee_asks_for_an_incident() -> None:
    assert failure_of(KeyError("x")).unexpected
    assert failure_of(BlobCorrupt("x")).unexpected
    assert not failure_of(StoreUnavailable("x")).unexpected


def test_the_users_mistakes_win_over_everything_and_are_listed_together() -> None:
    errors: list[CorralError | Exception] = [
        StoreUnavailable("away"),
        InvalidSpec("a", mistakes=("a", "b")),
        KeyError("bug"),
        InvalidSpec("c"),
    ]

    worst = most_telling([failure_of(error) for error in errors])

    assert (worst.reason, worst.messages) == (Reason.MALFORMED_PAYLOAD, ("a", "b", "c"))


def test_the_first_end_stands() -> None:
    ending = Ending()

    assert ending.settle(aborted(Reason.CANCELED))
    assert not ending.settle(Resolution(phase=Phase.COMPLETED))
    assert ending.resolution == aborted(Reason.CANCELED)


def test_of_the_aborts_only_a_shutdown_is_news_to_the_queue() -> None:
    assert aborted(Reason.WORKER_SHUTDOWN).told
    assert not aborted(Reason.CANCELED).told
    assert not aborted(Reason.CLAIM_EXPIRED).told
