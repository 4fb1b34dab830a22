"""How a run ends, decided purely: what each error means for the task, which of several wins, and that the first end
stands.

========================================  ===================  =======================================================
what happened                             the run becomes      why
========================================  ===================  =======================================================
the command ended, all plugins say True   completed
the command ended, a plugin says False    failed               a non-zero exit, a limit, a missing artifact: results
CallerError (InvalidSpec, TooLarge, ...)  malformed-payload    the user's to repair; trying again changes nothing
QuotaExceeded                             resource-unavailable the tenant's bytes or this disk are used up; a retry
                                                               would do all the work again and end the same
other CapacityError, DependencyError      intermittent-task    a sandbox, the store or the network failed under us;
                                                               another run, perhaps elsewhere, may work: it is retried
BlobCorrupt, any other error              internal-error       unknown: the log names an incident, the worker's own
                                                               log has the traceback under it; never retried blindly
a plugin raises RunEnded(reason)          that reason          for instance retry_statuses: intermittent-task
========================================  ===================  =======================================================

Of several errors at one stage the most telling wins: malformed-payload (certain, and the user can act), then
internal-error, resource-unavailable, intermittent-task. Mistakes of several plugins are listed together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from corral.kernel.errors import CallerError, CapacityError, CorralError, DependencyError, InvalidSpec, QuotaExceeded
from corral.tasks.model import Phase, Reason


class Stage(StrEnum):
    """Where a run stands on its worker; in this order, and never back."""

    PREPARE = "prepare"
    BUILD = "build"
    START = "start"
    STARTED = "started"
    WAITING = "waiting"
    STOPPED = "stopped"
    FINISHED = "finished"
    RESOLVED = "resolved"


class RunEnded(CorralError):
    """A plugin ends the run with a reason of its own."""

    code = "run-ended"

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run becomes an exception. ``unexpected`` asks for an incident id and a traceback."""

    reason: Reason
    messages: tuple[str, ...]
    unexpected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """How a run ends. ``told`` is False when the queue knows already (canceled, or the lease is lost)."""

    phase: Phase
    reason: Reason | None = None
    message: str = ""
    told: bool = True


_MOST_TELLING: Final = (
    Reason.MALFORMED_PAYLOAD,
    Reason.INTERNAL_ERROR,
    Reason.RESOURCE_UNAVAILABLE,
    Reason.INTERMITTENT_TASK,
)


def failure_of(error: BaseException) -> Failure:
    """What one error means for the run."""
    match error:
        case RunEnded():
            return Failure(reason=error.reason, messages=(error.message,))
        case InvalidSpec():
            return Failure(reason=Reason.MALFORMED_PAYLOAD, messages=error.mistakes)
        case CallerError():
            return Failure(reason=Reason.MALFORMED_PAYLOAD, messages=(error.message,))
        case QuotaExceeded():
            return Failure(reason=Reason.RESOURCE_UNAVAILABLE, messages=(error.message,))
        case CapacityError() | DependencyError():
            return Failure(reason=Reason.INTERMITTENT_TASK, messages=(error.message,))
        case _:
            return Failure(reason=Reason.INTERNAL_ERROR, messages=("internal error",), unexpected=True)


def most_telling(failures: Sequence[Failure]) -> Failure:
    """The one failure that stands for several; mistakes of the winning reason are listed together."""
    rank = {reason: place for place, reason in enumerate(_MOST_TELLING)}
    first = min(failures, key=lambda failure: rank.get(failure.reason, len(rank)))
    same = [failure for failure in failures if failure.reason is first.reason]
    messages = tuple(dict.fromkeys(message for failure in same for message in failure.messages))
    return Failure(reason=first.reason, messages=messages, unexpected=any(failure.unexpected for failure in same))


class Ending:
    """The end of one run, written once: whoever comes later changes nothing."""

    def __init__(self) -> None:
        self.resolution: Resolution | None = None

    def settle(self, resolution: Resolution) -> bool:
        """Make this the end; False when there is one already."""
        if self.resolution is not None:
            return False
        self.resolution = resolution
        return True


def aborted(reason: Reason) -> Resolution:
    """The end of a run that was aborted from outside; only a worker's own shutdown is news to the queue."""
    return Resolution(phase=Phase.EXCEPTION, reason=reason, told=reason is Reason.WORKER_SHUTDOWN)
