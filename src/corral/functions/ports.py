"""What functions need from others: an engine that hosts instances, a front that routes, a place for the registry."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from corral.functions.machine import Change, Function, HistoryEntry
from corral.functions.model import (
    Demand,
    EngineCapacity,
    FunctionKey,
    InstanceOrder,
    InstanceReport,
    LogLine,
    Prepared,
    PrepareOrder,
    RevisionKey,
    RevisionSpec,
)
from corral.functions.routing import RoutingUpdate


class Engine(Protocol):
    """Turns programs into machine code. Lives on a worker; its native processes start at the first use."""

    def capacity(self) -> EngineCapacity:
        """What can be hosted here, now. Never waits, never starts a process."""
        ...

    async def prepare(self, order: PrepareOrder) -> Prepared:
        """Fetch, check, compile, keep. What is wrong with the program is told in the answer, not raised.

        Codes: ``not-wasm``, ``truncated``, ``wrong-kind`` (a component where a module is expected, or the reverse),
        ``unknown-import`` (the text names it and those available), ``no-entry``, ``compile-timeout``, ``too-large``,
        ``invalid-module``; and ``store-unavailable``, ``engine-lost`` for what is not the program's fault.
        Cancellation: stops compiling; nothing half-made stays.
        """
        ...


class Instances(Protocol):
    """The instances of one worker. All methods are idempotent: the desired state is repeated."""

    async def start(self, order: InstanceOrder) -> None:
        """Begin to start it, and return at once; how it goes is in the reports (``changed`` is called).

        An id that is known already changes nothing. Cancellation: safe.
        """
        ...

    async def stop(self, instance_id: str, *, drain_s: float) -> None:
        """Take no new request, let those in flight finish for ``drain_s``, then end it. An unknown id is no error.

        Returns at once; the reports tell the rest.
        """
        ...

    def forget(self, instance_id: str) -> None:
        """Leave a stopped or failed instance out of the reports from now on."""
        ...

    def reports(self) -> Sequence[InstanceReport]:
        """Every instance that is not forgotten. Never waits."""
        ...


class News(Protocol):
    """Hints that another scheduler changed something."""

    async def listen(self, heard: Callable[[], None]) -> None:
        """Call ``heard`` at each, until cancelled. Some may be missed, and some may be for nothing."""
        ...


class Front(Protocol):
    """The HTTP front of a worker."""

    def update_routes(self, update: RoutingUpdate) -> bool:
        """Use them from now on (within 10 ms); False when an update is missing, so that a whole one is asked for."""
        ...

    def routes_in_use(self) -> tuple[str, int]:
        """Epoch and version of the table by which requests are routed now; ``("", 0)`` before the first.

        A change is answered to its owner when all fronts use it, so ``on_change`` is called when this grew.
        """
        ...

    def demands(self) -> Sequence[Demand]:
        """Revisions that have requests waiting or in flight here. Never waits."""
        ...


class FunctionsHost(Engine, Instances, Front, Protocol):
    """All that a worker does for functions; what the worker's end of the stream drives.

    ``on_change`` is to be called, on the event loop, when a report or a demand changed in a way that matters at once:
    an instance became ready, failed or stopped; a program is prepared; a revision without instances got its first
    waiting request, or has more than twice as many as were told.
    ``on_log`` takes lines on their way to the scheduler; it never waits, and drops when too many wait.
    """

    def connect(self, *, on_change: Callable[[], None], on_log: Callable[[LogLine], None]) -> None:
        """Called once, before anything else."""
        ...


Decide = Callable[[Function | None], Change]
"""From the function as it is stored now to what it should be; may raise, and may be called again."""


class FunctionStore(Protocol):
    """Where the registry is kept, by all schedulers of a fleet. Every method may raise StoreUnavailable."""

    async def load(self) -> Sequence[Function]:
        """All functions, removed ones too."""
        ...

    async def change(
        self, key: FunctionKey, decide: Decide, *, actor: str, specs: Mapping[RevisionKey, RevisionSpec]
    ) -> Change:
        """Let ``decide`` change the function, with the history entry and new specs, in one transaction.

        Changes of one function follow one another, whichever scheduler makes them. Raises what ``decide`` raises, and
        QuotaExceeded when the disk is full: then nothing has changed. Cancellation: all or nothing.
        """
        ...

    async def specs(self, keys: Collection[RevisionKey]) -> Mapping[RevisionKey, RevisionSpec]:
        """Those of the asked specs that are there."""
        ...

    async def history(self, key: FunctionKey, *, limit: int, before: int | None = None) -> Sequence[HistoryEntry]:
        """Changes of a function, newest first, of versions below ``before``."""
        ...

    async def forget(self, *, before_s: float, keep: int) -> int:
        """Forget functions removed before then, and all but the newest ``keep`` changes of the others; how many rows.

        Specs that no entry names any more go with them.
        """
        ...
