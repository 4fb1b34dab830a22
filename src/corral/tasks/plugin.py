"""What a plugin is: one feature of the task life, in one file.

A :class:`Plugin` lives as long as its worker; for each run it may :meth:`~Plugin.attach` a :class:`TaskPlugin`, whose
hooks are called in the order of the stages::

    prepare    Plugin.attach      the payload is known; nothing has happened
    build      build(draft)       shape the command's environment, limits, ...
    start      start(sandbox)     the sandbox is there, the command is not: put things into it
    started    started()          the command runs
    stopped    stopped(...)       it ended: judge it (all must say True), take things out
               ------------- the log is closed here: no hook below may write to it -------------
    finished   finished(...)      the run is completed or failed, and not reported yet
    exception  exception(reason)  instead of whatever was left, when the run became an exception
    dispose    dispose()          always, last: free everything

The hooks of one stage run at the same time, in no order. One that fails never stops the others; each is bounded in
time. A hook is plain when it does not wait, and ``async`` when it does. What it raises decides how the run ends
(``tasks.stages``). A hook must listen to cancellation: an abort may come at any await, except in ``dispose``.
"""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

import msgspec

from corral.blobs.ports import BlobStore
from corral.kernel.clock import Clock
from corral.sandboxes.model import ExecResult
from corral.sandboxes.sandbox import Sandbox
from corral.tasks.core_fields import CoreFields
from corral.tasks.model import Artifact, Phase, Reason
from corral.tasks.ports import Claim
from corral.tasks.run_log import RunLog

HOOKS: Final = ("build", "start", "started", "stopped", "finished", "exception", "dispose")


@dataclass(slots=True, kw_only=True)
class ExecDraft:
    """The command as it will be run; ``build`` hooks change it, from ``start`` on it is fixed."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    output_bytes_max: int | None = None


@dataclass(slots=True, kw_only=True)
class RunContext:
    """What a plugin may know of its run, and use.

    Attributes:
        note: one sentence for the user about how the run ended; the first one stands (see :meth:`say`).
        artifacts: what the run leaves; plugins add to it.
        inputs: digests of what went in; whoever puts something in adds to it.
    """

    claim: Claim
    core: CoreFields | None
    log: RunLog
    blobs: BlobStore
    clock: Clock
    work: str = "/work"
    note: str = ""
    artifacts: list[Artifact] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)

    @property
    def tenant(self) -> str:
        """Whose run it is."""
        return self.claim.tenant

    def say(self, sentence: str) -> None:
        """Set the sentence of the run's end, unless there is one already."""
        if not self.note:
            self.note = sentence


class TaskPlugin:
    """One plugin's part in one run. Override what you need: a hook that is not overridden costs nothing."""

    overridden: ClassVar[frozenset[str]] = frozenset()
    takes_out: ClassVar[bool] = True
    """False for a plugin whose ``stopped`` does not look into the sandbox: it may be empty by then."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.overridden = frozenset(name for name in HOOKS if getattr(cls, name) is not getattr(TaskPlugin, name))

    def build(self, draft: ExecDraft) -> Awaitable[None] | None:
        """Shape the command."""

    def start(self, sandbox: Sandbox) -> Awaitable[None] | None:
        """Put things into the sandbox."""

    def started(self) -> Awaitable[None] | None:
        """The command runs."""

    def stopped(self, result: ExecResult, sandbox: Sandbox) -> Awaitable[bool] | bool:
        """Judge the command's end, and take things out; True without an opinion."""
        del result, sandbox
        return True

    def finished(self, phase: Phase) -> Awaitable[None] | None:
        """The run will be reported as ``phase``, completed or failed."""

    def exception(self, reason: Reason) -> Awaitable[None] | None:
        """The run ended as an exception, also as canceled or worker-shutdown."""

    def dispose(self) -> Awaitable[None] | None:
        """Free everything; called exactly once, whatever happened."""


class WorkerControls(Protocol):
    """What a plugin may do to its worker."""

    def drain(self) -> None:
        """Take nothing new, finish what runs, end."""
        ...

    def stop_now(self, why: str) -> None:
        """Abort all runs as worker-shutdown, end with an error."""
        ...


class NoFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a plugin that reads nothing from the payload."""


class Plugin:
    """One feature. Safe for many runs at once.

    Attributes:
        name: unique; names the plugin in logs, errors and configuration.
        fields: the payload keys that are its own, with their types.
    """

    name: ClassVar[str]
    fields: ClassVar[type[msgspec.Struct]] = NoFields

    def attach(self, run: RunContext, fields: Any) -> TaskPlugin | None:
        """Take part in a run, or not (None).

        ``fields`` is an instance of :attr:`fields`, or None when the payload is malformed: a plugin that logs
        takes part even then.

        Raises: InvalidSpec, when the payload asks for what this worker does not give.
        """
        del run, fields
        return None

    async def serve(self, controls: WorkerControls) -> None:
        """Run beside the worker, from its start to its end; cancelled at the end."""
        del controls

    def idle(self, idle_s: float) -> None:
        """The worker has nothing to do since ``idle_s`` seconds."""

    async def close(self) -> None:
        """The worker ended; free everything."""
