"""The ports of actions.

Scheduler side: ``ActionCache`` (results by action digest) and ``Executions`` (the durable queue, which knows nothing
of actions). Worker side: ``InputRoots`` puts a tree of inputs before a sandbox's command; ``Sandboxes`` and ``Images``
give what a command runs in. Doors call ``actions.service.ActionService``; a worker's own door, and the queue's runs,
call ``actions.runner.ActionRunner``.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from corral.actions.model import ExecutionOutcome, Stage, StoredResult
from corral.images.ports import ImageLease
from corral.kernel.digest import Digest
from corral.sandboxes.pool import Lease
from corral.sandboxes.pool_model import PoolKey
from corral.sandboxes.sandbox import Sandbox


class ActionCache(Protocol):
    """Results by tenant and action digest.

    A hit implies that every blob that the result names is stored, and marks them all as used now; so they stay for a
    while. An entry of which a blob has gone is forgotten by the very question that finds it out.
    """

    async def get(self, tenant: str, action: Digest) -> StoredResult | None:
        """The result, or None. Raises StoreUnavailable. Cancellation: safe."""
        ...

    async def update(self, tenant: str, action: Digest, result: StoredResult) -> None:
        """Store a result over an older one; durable when this returns.

        The action's own blob need not be stored. ``result.named`` is completed from the trees that the result names.

        Raises:
            InvalidSpec: the result is malformed, or not a success (only those are cached).
            MissingBlobs: it names blobs that are not stored.
            TooLarge: it is longer than the cache takes.
            StoreUnavailable: nothing was stored.
        Cancellation: all or nothing.
        """
        ...

    async def remove(self, tenant: str, action: Digest) -> None:
        """Forget a result; an absent one is no error. Raises StoreUnavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRequest:
    """What the queue is asked to have executed.

    Attributes:
        priority: as in the remote execution API: lower runs sooner, 0 is normal; it orders one tenant's own only.
        runtime: that the platform asks for; "" is any worker's default.
        platform: the properties that hold, those of a named pool among them.
        timeout_s: the command's; None for the worker's default.
    """

    tenant: str
    action: Digest
    priority: int = 0
    runtime: str = ""
    platform: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    do_not_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionState:
    """Where an execution stands in the queue.

    Attributes:
        outcome: how it ended; None while it has not.
        named: every blob that the outcome's result names.
        cacheable: it succeeded, and its action does not forbid to keep the result.
        kept: the result was put into the action cache together with the execution's end.
        news: how much the queue had told of executions when this was read; for ``Executions.wait_changed``.
    """

    execution: str
    action: Digest
    stage: Stage
    worker: str = ""
    outcome: ExecutionOutcome | None = None
    named: tuple[Digest, ...] = ()
    cacheable: bool = False
    kept: bool = False
    news: int = 0


class Executions(Protocol):
    """The durable queue, as actions see it. Ids of other tenants look like ids that do not exist."""

    async def submit(self, request: ExecutionRequest) -> ExecutionState:
        """Queue it; durable when the answer comes. Raises InvalidSpec, QueueFull, StoreUnavailable."""
        ...

    async def find(self, tenant: str, action: Digest) -> ExecutionState | None:
        """The latest execution of this action that is remembered and may be shared, whoever began it.

        One that has ended is of use when its result never reached the cache: its scheduler was killed in between.
        """
        ...

    async def state(self, tenant: str, execution: str) -> ExecutionState:
        """Where it stands now. Raises NotFound."""
        ...

    async def wait_changed(self, tenant: str, state: ExecutionState, *, within_s: float) -> ExecutionState | None:
        """Return when it may have changed since ``state`` was read, or ``within_s`` passed.

        The answer is its new state, or None when that must be read. Cancellation: safe.
        """
        ...

    async def cancel(self, tenant: str, execution: str) -> None:
        """Nobody wants it any more. One that has ended is no error."""
        ...


class InputRoots(Protocol):
    """Puts trees of inputs before commands, and never lets a sandbox change the store."""

    async def fetch(self, tenant: str, root: Digest, runtime: str) -> "InputRoot":
        """Have the whole tree on this worker: what is missing is fetched in parallel and verified.

        ``runtime`` is the kind of sandbox that it will be staged in.

        Raises:
            MissingBlobs: with every blob that is not stored (as far as the directories that are can tell).
            InvalidSpec: no tree: names with ``/`` or ``..``, duplicate names, a cycle, bytes that are no directory.
            TooLarge: more entries, bytes or depth than the limits.
            StoreUnavailable, QuotaExceeded: the store failed; this disk is full.
        Cancellation: safe; what came already stays for the next.
        """
        ...


class InputRoot(Protocol):
    """A tree of inputs on this worker; kept until ``release_nowait``."""

    @property
    def input_files(self) -> int:
        """How many files it has, each counted as often as it occurs."""
        ...

    @property
    def total_bytes(self) -> int:
        """Their bytes."""
        ...

    def staged(self, sandbox: Sandbox, directory: str, parents: Sequence[str]) -> AbstractAsyncContextManager[None]:
        """In the block the tree lies at ``directory`` of the sandbox, and nothing but it; ``parents`` exist in it.

        What is written there is the sandbox's own. Raises InvalidSpec (a parent is a file), TooLarge, SandboxLost.
        """
        ...

    def release_nowait(self) -> None:
        """It is used no more. Idempotent."""
        ...


class Sandboxes(Protocol):
    """Where sandboxes come from (``sandboxes.pool.Pools``)."""

    async def acquire(self, key: PoolKey, *, within_s: float | None = None) -> Lease:
        """A sandbox of ``key``. Raises PoolExhausted, SandboxFailed, InvalidSpec. Cancellation: nothing is held."""
        ...


class Images(Protocol):
    """Where images come from (``images.service.Images``)."""

    async def lease(self, text: str, *, secret: str = "") -> ImageLease:
        """The image that ``text`` names, prepared. Raises InvalidSpec, NotFound, DependencyError."""
        ...
