"""The nouns of tasks: what a user asks for, what a run is, how it can end.

``TaskDefinition`` is what travels (REST, database, wire): an envelope that the queue reads, and a ``payload`` that
only plugins read. ``TaskLife`` is the queue's pure state of one task, and ``Task`` is both with their names. A task is
tried in *runs*; a run is held by one worker under a *lease* with a fencing *token*.
"""

from enum import StrEnum
from typing import Any

import msgspec


class Phase(StrEnum):
    """Where a task stands; the last three are final and absorb everything."""

    UNSCHEDULED = "unscheduled"
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    EXCEPTION = "exception"

    @property
    def final(self) -> bool:
        """True when nothing but a rerun can follow."""
        return self in (Phase.COMPLETED, Phase.FAILED, Phase.EXCEPTION)


class Reason(StrEnum):
    """Why a run, or a whole task, ended as an exception.

    Reported by workers: worker-shutdown, malformed-payload, resource-unavailable, internal-error, superseded,
    intermittent-task, canceled. Found by the queue itself: claim-expired, deadline-exceeded, dependency-failed.
    """

    CANCELED = "canceled"
    WORKER_SHUTDOWN = "worker-shutdown"
    MALFORMED_PAYLOAD = "malformed-payload"
    RESOURCE_UNAVAILABLE = "resource-unavailable"
    INTERNAL_ERROR = "internal-error"
    SUPERSEDED = "superseded"
    INTERMITTENT_TASK = "intermittent-task"
    CLAIM_EXPIRED = "claim-expired"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    DEPENDENCY_FAILED = "dependency-failed"

    @property
    def retried(self) -> bool:
        """True when the task gets a new run while retries are left."""
        return self in (Reason.WORKER_SHUTDOWN, Reason.CLAIM_EXPIRED, Reason.INTERMITTENT_TASK)


class Requires(StrEnum):
    """When dependencies let a task go."""

    ALL_COMPLETED = "all-completed"
    ALL_RESOLVED = "all-resolved"


class Priority(StrEnum):
    """From first to last served, within one tenant."""

    HIGHEST = "highest"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    LOWEST = "lowest"

    @property
    def rank(self) -> int:
        """4 for highest, 0 for lowest."""
        return 4 - list(Priority).index(self)


class TaskDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user submits; immutable from then on.

    Attributes:
        payload: what to run; its schema is the union of the worker's plugins' (``tasks.payload``).
        name: for people.
        group: tasks of one group are listed and canceled together; "" puts a task into a group of its own.
        dependencies: ids of tasks of the same tenant.
        requires: what the dependencies must have become.
        deadline_s: seconds after submission at which the task is resolved whatever happens.
        expires_s: seconds after *resolution* after which the task, its log and its artifacts are forgotten.
        retries: how many further runs follow worker-shutdown, claim-expired and intermittent-task.
        runtime: a runtime's name, or "" for the worker's default.
        metadata: free text for people; kept, never read.
    """

    payload: dict[str, Any]
    name: str = ""
    group: str = ""
    dependencies: tuple[str, ...] = ()
    requires: Requires = Requires.ALL_COMPLETED
    priority: Priority = Priority.NORMAL
    deadline_s: float = 86_400.0
    expires_s: float = 28 * 86_400.0
    retries: int = 5
    runtime: str = ""
    metadata: dict[str, str] = {}


class ArtifactKind(StrEnum):
    """What an artifact holds."""

    FILE = "file"
    DIRECTORY = "directory"
    ERROR = "error"


class Artifact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named output of a run. ``digest`` is a blob (file), a tree (directory), or "" (error, see ``message``).

    ``executable`` is a file's; a tree knows it of each of its own.
    """

    name: str
    kind: ArtifactKind
    digest: str = ""
    size_bytes: int = 0
    content_type: str = "application/octet-stream"
    message: str = ""
    executable: bool = False


class RunUsage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run used, and how it got its sandbox."""

    wall_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    memory_peak_bytes: int = 0
    acquire_s: float = 0.0
    warm: bool = False
    cold_reason: str = ""
    sandbox: str = ""
    runtime: str = ""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The command was started at ``at_s``."""

    at_s: float


class Returned(msgspec.Struct, frozen=True, kw_only=True, tag="returned"):
    """The worker claimed the run ahead of its time, has not begun it, and somebody else had better have it."""


class Resolved(msgspec.Struct, frozen=True, kw_only=True, tag="resolved"):
    """A run ended. Exactly one of completed, failed or exception (then ``reason`` is set).

    Attributes:
        started_s: when the command was started, for a run that was too short to have told that before.
        exit_status: of the command, when it ran and exited.
        end: ``sandboxes.model.End`` of the command, "" when it never ran.
        message: one sentence for the user; "" when there is nothing to say.
        inputs: digests of what went in.
        env_digest: of the environment's names and values.
        log: digest of a log that the worker stored itself; "" when the scheduler stores it (``Run.log``).
        outcome: what a kind of work other than commands tells of itself, as JSON of its own; kept with the run.
    """

    at_s: float
    phase: Phase
    reason: Reason | None = None
    started_s: float | None = None
    exit_status: int | None = None
    signal: int | None = None
    end: str = ""
    message: str = ""
    argv: tuple[str, ...] = ()
    image: str = ""
    env_digest: str = ""
    inputs: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    log: str = ""
    log_bytes: int = 0
    usage: RunUsage = RunUsage()
    outcome: str = ""


RunReport = Started | Returned | Resolved
"""What a worker says of a run; idempotent."""


class RunCreated(StrEnum):
    """Why a run exists."""

    SCHEDULED = "scheduled"
    RETRY = "retry"
    TASK_RETRY = "task-retry"
    RERUN = "rerun"


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One attempt at a task; its number is its place in ``TaskLife.runs``.

    Attributes:
        phase: pending until claimed, then running, then completed, failed or exception for good.
        worker: that holds or held the lease; "" before the claim.
        token: of the lease; 0 before the claim, and larger than that of every earlier run.
        lease_until_s: the run must end or be reclaimed before; None unless running.
        end: what the worker reported, without artifacts, inputs and argv (the ledger keeps those); None when the queue
            itself ended the run.
        log, log_bytes: digest of the finished, compressed log, and how many bytes of text it holds; "" and 0 until the
            log is finished, and for good when nothing was written.
    """

    created: RunCreated
    created_s: float
    phase: Phase = Phase.PENDING
    reason: Reason | None = None
    worker: str = ""
    token: int = 0
    claimed_s: float | None = None
    started_s: float | None = None
    resolved_s: float | None = None
    lease_until_s: float | None = None
    end: Resolved | None = None
    log: str = ""
    log_bytes: int = 0


class Abort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run that the queue ended while a worker held it: the worker must kill it.

    Kept until ``until_s``, the end of the lease: by then the worker has given up on its own.
    """

    worker: str
    run: int
    token: int
    until_s: float


class TaskLife(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything about a task that changes; ``tasks.machine`` is the only one to change it.

    Attributes:
        reason: why the task is an exception; None otherwise.
        deadline_s: Unix seconds at which the task is resolved whatever happens.
        expires_after_s: how long a resolved task is remembered.
        retries_left: how many further runs may follow worker-shutdown, claim-expired and intermittent-task.
        requires: what the dependencies must have become.
        waits_for: dependencies that have not let the task go yet.
        token: of the last lease; grows with every claim.
        expires_s: Unix seconds at which the task is forgotten; None until it is resolved.
        abort: a run that a worker must kill.
    """

    phase: Phase
    created_s: float
    deadline_s: float
    expires_after_s: float
    retries_left: int
    requires: Requires = Requires.ALL_COMPLETED
    reason: Reason | None = None
    waits_for: tuple[str, ...] = ()
    token: int = 0
    runs: tuple[Run, ...] = ()
    resolved_s: float | None = None
    expires_s: float | None = None
    abort: Abort | None = None

    @property
    def worker(self) -> str:
        """Who holds the current run, or must still kill an aborted one; "" when nobody."""
        if self.phase is Phase.RUNNING:
            return self.runs[-1].worker
        return self.abort.worker if self.abort is not None else ""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task as the queue keeps it: what was asked for, and what became of it."""

    id: str
    tenant: str
    group: str
    definition: TaskDefinition
    life: TaskLife


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a task's story.

    Attributes:
        seq: grows over all tasks; where a reader of the stream goes on.
        kind: kebab-case, past tense.
        run: None for the task as a whole.
        text: one sentence for people.
    """

    seq: int
    task_id: str
    at_s: float
    kind: str
    text: str
    run: int | None = None
    worker: str = ""
    facts: dict[str, Any] = {}
