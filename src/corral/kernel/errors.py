"""The error tree, on one page, sorted by what the catcher should do.

::

    CorralError
      CallerError           fix the request
        InvalidSpec         a field is missing, unknown, of the wrong type or out of range
        NotFound            no such thing for this tenant (or at all: the two look the same on purpose)
        Conflict            a stale token, a wrong phase, another content under the same name
        Unauthenticated     who are you?
        Refused             we know who you are; the answer is no
        TooLarge            the bytes or the count exceed a named limit
      CapacityError         wait, then retry
        QueueFull           the queue's or the tenant's bound is reached
        QuotaExceeded       the tenant's quota is used up, or a disk is full
        PoolExhausted       no sandbox within the deadline
        NoFeasibleWorker    no live worker can run this
      DependencyError       retry, perhaps elsewhere
        StoreUnavailable    a blob store or the database did not answer
        SandboxLost         the sandbox died under us; nothing is known about what ran in it
        SandboxFailed       a sandbox could not be started
        WorkerLost          the worker's connection is gone
        SchedulerUnavailable  no scheduler answers at this address
      BlobCorrupt           never retry: stored bytes do not match their digest
      DatabaseCorrupt       never retry: the database's file is damaged
      UnsupportedVersion    the data directory or the peer is newer than this program

A command's non-zero exit, a kill by a limit and a timeout are *results*, not errors.
Every error is one clear sentence that says what is wrong and what would be right. ``context`` carries the
same facts as values, for machines; ``cure`` is a second sentence for the user when the first cannot say it.
"""

from typing import ClassVar

ContextValue = str | int | float | bool | None


class CorralError(Exception):
    """Root of all errors that Corral raises on purpose.

    Attributes:
        code: stable identifier for REST, gRPC and ``--json``; never reworded.
        retryable: the same request may succeed later without any change.
        status: the HTTP status that a door answers with.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, cure: str = "", **context: ContextValue) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure
        self.context = context

    def __str__(self) -> str:
        return self.message


class CallerError(CorralError):
    """The request can never succeed as it is."""

    code = "bad-request"
    status = 400


class InvalidSpec(CallerError):
    """One or more fields are wrong; ``mistakes`` lists all of them at once."""

    code = "invalid-spec"
    status = 422

    def __init__(
        self,
        message: str,
        *,
        cure: str = "",
        mistakes: tuple[str, ...] = (),
        **context: ContextValue,
    ) -> None:
        super().__init__(message, cure=cure, **context)
        self.mistakes = mistakes or (message,)


class NotFound(CallerError):
    """No such thing in this tenant. Another tenant's thing looks exactly the same."""

    code = "not-found"
    status = 404


class Conflict(CallerError):
    """A stale fencing token, an event that is not legal in this phase, or a name that is taken."""

    code = "conflict"
    status = 409


class Unauthenticated(CallerError):
    """No token, or none that we know. The text never says which."""

    code = "unauthenticated"
    status = 401


class Refused(CallerError):
    """A known caller asked for something that its scopes or the policy do not allow."""

    code = "refused"
    status = 403


class TooLarge(CallerError):
    """Bytes or a count exceed a limit; the message names the limit."""

    code = "too-large"
    status = 413


class CapacityError(CorralError):
    """Everything is right and everything is full: wait, then retry."""

    code = "no-capacity"
    retryable = True
    status = 503


class QueueFull(CapacityError):
    """The queue's bound, or the tenant's share of it, is reached."""

    code = "queue-full"
    status = 429


class QuotaExceeded(CapacityError):
    """The tenant's byte or count quota is used up."""

    code = "quota-exceeded"
    status = 507


class PoolExhausted(CapacityError):
    """No sandbox became free within the deadline."""

    code = "pool-exhausted"


class NoFeasibleWorker(CapacityError):
    """No live worker offers what the work needs."""

    code = "no-feasible-worker"


class DependencyError(CorralError):
    """Something that we stand on failed; another try, perhaps elsewhere, may work."""

    code = "dependency-failed"
    retryable = True
    status = 502


class StoreUnavailable(DependencyError):
    """A blob store or the database failed or did not answer within its deadline."""

    code = "store-unavailable"
    status = 503


class SandboxLost(DependencyError):
    """The sandbox died under us; nothing is known about what ran in it."""

    code = "sandbox-lost"


class SandboxFailed(DependencyError):
    """A sandbox could not be started; the message carries the runtime's own words."""

    code = "sandbox-failed"


class WorkerLost(DependencyError):
    """The connection to a worker is gone."""

    code = "worker-lost"


class SchedulerUnavailable(DependencyError):
    """No scheduler answers at the address."""

    code = "scheduler-unavailable"
    status = 503


class BlobCorrupt(CorralError):
    """Stored bytes do not match their digest. Never retried: somebody must look."""

    code = "blob-corrupt"


class DatabaseCorrupt(CorralError):
    """The database's file is damaged, or is no database. Never retried: somebody must look."""

    code = "database-corrupt"


class UnsupportedVersion(CorralError):
    """The database, a data directory or a peer is of a version that this program does not know."""

    code = "unsupported-version"
