"""What happened, one line of JSON per request; behind ``corral cc stats``. Two files: the present and the one before.

Lines are gathered in memory and written together; what a killed daemon had not written is lost, about a second.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from corral.compile.model import Outcome


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One request. ``saved_s``: what the compiler took when the result was made; ``took_s`` what it took now."""

    t: float
    outcome: Outcome
    source: str = ""
    why: str = ""
    detail: str = ""
    saved_s: float = 0.0
    took_s: float = 0.0


class Journal:
    """Appends events. ``write`` is blocking and short."""

    def __init__(self, directory: Path, *, bytes_max: int) -> None:
        self._path = directory / "journal.jsonl"
        self._bytes_max = bytes_max
        self._waiting: list[Event] = []
        self._encoder = msgspec.json.Encoder()

    def add(self, event: Event) -> None:
        """Remember an event until the next :meth:`write`."""
        self._waiting.append(event)

    def write(self) -> None:
        """Append what is waiting. A disk that is full loses these lines and nothing else."""
        events, self._waiting = self._waiting, []
        if not events:
            return
        try:
            with self._path.open("ab") as file:
                file.write(self._encoder.encode_lines(events))
                size = file.tell()
            if size > self._bytes_max:
                os.replace(self._path, self._path.with_suffix(".old"))
        except OSError:
            return


def read_journal(directory: Path, *, since_s: float) -> Iterator[Event]:
    """The events since an instant, the oldest first; damaged lines are skipped."""
    decoder = msgspec.json.Decoder(Event)
    for name in ("journal.old", "journal.jsonl"):
        try:
            lines = (directory / name).read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                event = decoder.decode(line)
            except msgspec.MsgspecError:
                continue
            if event.t >= since_s:
                yield event


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over events. ``misses``: runs by reason; ``bypasses``: by reason."""

    requests: int
    hits: int
    runs: int
    failed: int
    outcomes: dict[str, int]
    misses: dict[str, int]
    bypasses: dict[str, int]
    saved_s: float
    spent_s: float

    @property
    def hit_rate(self) -> float:
        """Hits among what could have been one."""
        return self.hits / (self.hits + self.runs) if self.hits + self.runs else 0.0


_HITS = frozenset({Outcome.LOCAL_HIT, Outcome.SHARED_HIT, Outcome.REMOTE_HIT})
_RUNS = frozenset({Outcome.LOCAL_RUN, Outcome.REMOTE_RUN})


def sums(events: Iterator[Event]) -> Statistics:
    """Pure."""
    outcomes: Counter[str] = Counter()
    misses: Counter[str] = Counter()
    bypasses: Counter[str] = Counter()
    saved_s, spent_s = 0.0, 0.0
    for event in events:
        outcomes[event.outcome.value] += 1
        if event.outcome in _HITS:
            saved_s += event.saved_s
        elif event.outcome is Outcome.BYPASS:
            bypasses[event.why] += 1
        elif event.outcome in _RUNS:
            misses[event.why] += 1
            spent_s += event.took_s
    return Statistics(
        requests=sum(outcomes.values()),
        hits=sum(outcomes[each.value] for each in _HITS),
        runs=sum(outcomes[each.value] for each in _RUNS),
        failed=outcomes[Outcome.FAILED.value],
        outcomes=dict(outcomes.most_common()),
        misses=dict(misses.most_common()),
        bypasses=dict(bypasses.most_common()),
        saved_s=saved_s,
        spent_s=spent_s,
    )
