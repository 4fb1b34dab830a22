"""Compiles that go on at this moment: wrappers run them, or somebody elsewhere. Equal ones wait for the first."""

from corral.compile.callers import Caller
from corral.compile.capture import Capture
from corral.compile.plan import Plan
from corral.kernel.concurrency import Signal


class Run:
    """One compile. ``capture`` is how its wrapper runs it, None when it runs elsewhere; ``started_ns``: wall time;
    ``refused``: why no worker runs it, "" when none was asked.
    """

    __slots__ = ("caller", "capture", "changed", "number", "plan", "refused", "started_ns")

    def __init__(
        self, plan: Plan, caller: Caller, number: int, captured: Capture | None, started_ns: int, refused: str = ""
    ) -> None:
        self.plan = plan
        self.caller = caller
        self.number = number
        self.capture = captured
        self.started_ns = started_ns
        self.refused = refused
        self.changed = Signal()


class UnderWay:
    """See the module. A run ends for those that wait when its result can be found, or when there will be none."""

    def __init__(self) -> None:
        self._numbers = 0
        self._reporting: dict[int, Run] = {}
        self._first: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._first)

    @property
    def reporting(self) -> int:
        """How many wrappers compile and will report."""
        return len(self._reporting)

    def first(self, request_key: str) -> Run | None:
        """The run that equal requests wait for."""
        return self._first.get(request_key)

    def elsewhere(self, plan: Plan, caller: Caller) -> Run:
        """A worker, or a shared store, is asked."""
        run = Run(plan, caller, 0, None, 0)
        self._first[plan.request_key] = run
        return run

    def here(self, plan: Plan, caller: Caller, captured: Capture, *, started_ns: int, refused: str) -> Run:
        """The wrapper is asked to compile."""
        self._numbers += 1
        run = self._reporting[self._numbers] = Run(plan, caller, self._numbers, captured, started_ns, refused)
        self._first.setdefault(plan.request_key, run)
        return run

    def reported(self, number: int) -> Run | None:
        """The run with this number, which is not waited for any more; None when there is none."""
        return self._reporting.pop(number, None)

    def left(self, caller: Caller) -> None:
        """A wrapper has gone: what it was to run will not be reported."""
        for run in [run for run in self._reporting.values() if run.caller is caller]:
            del self._reporting[run.number]
            self.end(run)

    def end(self, run: Run) -> None:
        """Idempotent."""
        if self._first.get(run.plan.request_key) is run:
            del self._first[run.plan.request_key]
        run.changed.notify()
