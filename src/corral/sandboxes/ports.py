"""The ports of sandboxes: a runtime (one kind of isolation) and the box that it starts.

Life cycle: ``Runtime.start`` gives a ``Box`` (a running PID 1 of ours and a link to it);
``Sandbox`` (in ``sandboxes.sandbox``) wraps the box's link and is the same class for every runtime; the pool owns
sandboxes and calls ``stop`` exactly when it wants them gone. A new isolation technology is one file in ``runtimes/``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from corral.kernel.digest import Digest
from corral.sandboxes.link import Link
from corral.sandboxes.model import Capabilities, SandboxSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitEvents:
    """How often the kernel enforced a limit on a box since it started; cgroup counters."""

    out_of_memory: int = 0
    process_limit: int = 0

    def at_least(self, *, out_of_memory: int = 0, process_limit: int = 0) -> "LimitEvents":
        """These, where they are not more already: a group that is gone counts nothing, and what happened stays so."""
        return LimitEvents(
            out_of_memory=max(self.out_of_memory, out_of_memory),
            process_limit=max(self.process_limit, process_limit),
        )


class Box(Protocol):
    """A started sandbox as its runtime sees it. Owns the process, cgroup, mounts and directories of one box."""

    @property
    def spec(self) -> SandboxSpec:
        """What it was started with."""
        ...

    @property
    def link(self) -> Link:
        """The connection to its agent, already set up."""
        ...

    def limit_events_nowait(self) -> LimitEvents:
        """Current counters; zeros where there is no cgroup."""
        ...

    async def stop(self) -> None:
        """Kill everything in the box and free all that it owns; idempotent; frees the rest even when a part fails.

        Cancellation: call through ``finish``; a cancelled stop may be repeated.
        """
        ...


class Runtime(Protocol):
    """One kind of isolation. Stateless apart from what it keeps in stock; many boxes at once."""

    name: str
    capabilities: Capabilities

    async def start(self, spec: SandboxSpec) -> Box:
        """Start a box whose agent has answered.

        Raises:
            InvalidSpec: the spec asks for what this runtime cannot give (a root that does not exist, ...).
            SandboxFailed: it did not start; the message holds the runtime's own words. Nothing is left behind.
        Cancellation: everything started so far is freed first.
        """
        ...

    async def sweep(self) -> int:
        """Find and free what a crashed predecessor left (processes, cgroups, directories); how many boxes."""
        ...


@runtime_checkable
class Snapshotting(Protocol):
    """The optional power to freeze a box and go on from there; see ``Capabilities.snapshot``.

    A snapshot stays on this worker and ends with it. It holds the memory of its tenant, who alone gets it back.
    """

    async def snapshot(self, box: Box) -> Digest:
        """Freeze ``box``, in which nothing runs, and stop it; what is in its folders is in the snapshot.

        Raises:
            InvalidSpec: another runtime started it.
            SandboxFailed: it could not be frozen; it is stopped all the same.
        Cancellation: the box is stopped first.
        """
        ...

    async def restore(self, snapshot: Digest, spec: SandboxSpec) -> Box:
        """Start a box from a snapshot, as often as wanted. Before its first exec it has the clock, the randomness and
        the names of ``spec``; ``Link.notes`` says what it could not be given.

        Raises:
            NotFound: there is no such snapshot (any more).
            InvalidSpec: it belongs to another tenant, or has another root or size.
            SandboxFailed, Cancellation: as ``Runtime.start``.
        """
        ...

    async def forget(self, snapshot: Digest) -> None:
        """Remove it; nothing when it is gone. Boxes that came from it live on."""
        ...


NewSandboxId = Callable[[], str]
