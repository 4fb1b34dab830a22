"""What REST answers, as values: the one definition that the door writes and the client reads.

Readers tolerate keys that they do not know, so that an older client can talk to a newer scheduler.
Times are Unix seconds, None where something has not happened.
"""

from typing import Any

import msgspec

from corral.tasks.model import Artifact, Phase, Reason, RunUsage, TaskDefinition


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a task. ``phase`` is pending before a worker took it, then running, then how it ended."""

    run: int
    phase: Phase
    reason: Reason | None = None
    created_because: str = "scheduled"
    worker: str = ""
    created_s: float | None = None
    claimed_s: float | None = None
    started_s: float | None = None
    resolved_s: float | None = None
    exit_status: int | None = None
    signal: int | None = None
    end: str = ""
    message: str = ""
    log: str = ""
    log_bytes: int = 0
    usage: RunUsage = RunUsage()


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """One task with all its runs. ``ahead`` counts pending tasks of the tenant that are served first, when asked."""

    id: str
    tenant: str
    phase: Phase
    reason: Reason | None = None
    name: str = ""
    group: str = ""
    created_s: float = 0.0
    deadline_s: float = 0.0
    expires_s: float | None = None
    retries_left: int = 0
    unmet: tuple[str, ...] = ()
    runs: tuple[RunView, ...] = ()
    definition: TaskDefinition

    @property
    def last_run(self) -> RunView | None:
        """The newest run, if there is one."""
        return self.runs[-1] if self.runs else None

    @property
    def exit_status(self) -> int | None:
        """What a shell would report for the newest run: exit status, 128 + signal, 127 for no such command, or None."""
        run = self.last_run
        if run is None:
            return None
        if run.exit_status is not None:
            return run.exit_status
        if run.end == "not-started":
            return 127
        return 128 + run.signal if run.signal is not None else None


class TaskPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of tasks, newest first; ``next`` is the cursor of the following page, "" at the end."""

    tasks: tuple[TaskView, ...]
    next: str = ""


class TaskBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The tasks of one submission, in its order."""

    tasks: tuple[TaskView, ...]


class SubmitBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several tasks in one request: all are accepted, or none.

    With ``ids`` (made by :func:`corral.kernel.ids.new_id`) a task may depend on one before it in the same request,
    and repeating the request changes nothing.
    """

    tasks: tuple[TaskDefinition, ...]
    ids: tuple[str, ...] = ()


class StoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event in a task's life."""

    at_s: float
    kind: str
    text: str
    run: int | None = None
    worker: str = ""
    facts: dict[str, Any] = {}


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """A task's life, oldest event first."""

    task_id: str
    events: tuple[StoryEvent, ...]


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task is where it is: whole sentences, the most important first."""

    task_id: str
    phase: Phase
    reasons: tuple[str, ...]


class RunArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact and the run that made it."""

    run: int
    artifact: Artifact


class ArtifactList(msgspec.Struct, frozen=True, kw_only=True):
    """Artifacts of a task, those of one run or of all."""

    artifacts: tuple[RunArtifact, ...]


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as the scheduler sees it."""

    id: str
    state: str
    address: str = ""
    version: str = ""
    slots: int = 0
    slots_free: int = 0
    runs: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    load: float = 0.0
    memory_free_bytes: int = 0
    disk_free_bytes: int = 0
    registered_s: float | None = None
    last_seen_s: float | None = None
    certificate_fingerprint: str = ""
    pools: Any = None


class WorkerList(msgspec.Struct, frozen=True, kw_only=True):
    """All workers that are not forgotten."""

    workers: tuple[WorkerView, ...]


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of audit rows, newest first: one row per run."""

    rows: tuple[dict[str, Any], ...]
    next: str = ""


class SecurityEventPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of security events, newest first: one per refusal."""

    events: tuple[dict[str, Any], ...]
    next: str = ""


class Digests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A list of digests, ``b3:<hex>-<size>``."""

    digests: tuple[str, ...]


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers."""

    version: str
    api: str = "v1"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error as REST writes it: problem+json (RFC 9457) with our stable ``code``.

    ``cause`` carries the facts as values, ``cure`` what to do, ``mistakes`` everything wrong with the request.
    """

    type: str = "about:blank"
    title: str = ""
    status: int = 500
    detail: str = ""
    code: str = "internal"
    cause: dict[str, Any] = {}
    cure: str = ""
    mistakes: tuple[str, ...] = ()
    retryable: bool = False
    request_id: str = ""
