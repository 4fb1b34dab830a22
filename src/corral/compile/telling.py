"""What is told of compiles: an event for each request, a record for each source. Threads write, the loop only notes."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import msgspec

from corral.compile.explain import Record, diffs, reason
from corral.compile.journal import Event, Journal
from corral.compile.model import IncludeSet, Outcome, Result
from corral.compile.plan import LiveSet, Plan
from corral.compile.records import Records
from corral.kernel.clock import Clock

_LATEST_MAX: Final = 20_000


@dataclass(frozen=True, slots=True)
class _Hit:
    plan: Plan
    live: LiveSet
    outcome: Outcome
    at_s: float
    result: Result

    def record(self) -> Record:
        return _record(
            self.plan,
            self.outcome,
            self.at_s,
            key=self.live.result_key,
            files=dict(self.live.include_set.files),
            result=self.result,
        )


class Teller:
    """Journal and records of one daemon."""

    def __init__(self, journal: Journal, records: Records, clock: Clock) -> None:
        self._journal = journal
        self._records = records
        self._clock = clock
        self._latest: OrderedDict[str, _Hit] = OrderedDict()

    def event(
        self,
        plan: Plan,
        outcome: Outcome,
        *,
        why: str = "",
        detail: str = "",
        saved_s: float = 0.0,
        took_s: float = 0.0,
    ) -> None:
        """One request has ended."""
        now_s = self._clock.now_s()
        self._journal.add(
            Event(t=now_s, outcome=outcome, source=plan.source, why=why, detail=detail, saved_s=saved_s, took_s=took_s)
        )

    def hit(self, plan: Plan, live: LiveSet, outcome: Outcome, result: Result) -> None:
        """A request was answered from a store."""
        self.event(plan, outcome, saved_s=result.duration_s)
        bare = msgspec.structs.replace(result, files=(), stdout=b"", stderr=b"")
        self._latest[plan.source] = _Hit(plan, live, outcome, self._clock.now_s(), bare)
        if len(self._latest) > _LATEST_MAX:
            self._latest.popitem(last=False)

    def ran(
        self,
        plan: Plan,
        outcome: Outcome,
        *,
        include_set: IncludeSet | None,
        result_key: str,
        not_kept: str = "",
        refused: str = "",
        result: Result | None = None,
    ) -> str:
        """Write down why this was no hit; the reason in one word. Blocking."""
        hit = self._latest.pop(plan.source, None)
        before = self._records.read(plan.source) if hit is None else hit.record()
        files = dict(include_set.files) if include_set is not None else {} if before is None else before.files
        after = _record(plan, outcome, self._clock.now_s(), key=result_key, files=files, why=not_kept, result=result)
        after = msgspec.structs.replace(after, refused=refused, diffs=diffs(before, after))
        self._records.write(after)
        return "not-stored" if not_kept else reason(after, before)

    def write_events(self) -> None:
        """Append what is waiting to the journal."""
        self._journal.write()

    def write_hits(self) -> None:
        """Write down the last hit of each source, where it differs from its record. Blocking."""
        while self._latest:
            source, hit = self._latest.popitem()
            known = self._records.read(source)
            if known is None or known.key != hit.live.result_key:
                self._records.write(hit.record())


def _record(
    plan: Plan,
    outcome: Outcome,
    at_s: float,
    *,
    key: str,
    files: dict[str, str],
    why: str = "",
    result: Result | None = None,
) -> Record:
    return Record(
        source=plan.source,
        output=plan.targets.get("object", ""),
        cwd=plan.cwd,
        root=plan.root,
        argv=plan.argv,
        at_s=at_s,
        outcome=outcome,
        why=why,
        key=key,
        request_key=plan.request_key,
        compiler=plan.identity.version,
        image=plan.identity.image,
        worker=result.origin if result is not None and result.origin != "local" else "",
        execution=result.execution if result is not None else "",
        inputs=plan.inputs,
        files=files,
    )
