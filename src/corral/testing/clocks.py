"""A clock that only its test moves."""

from dataclasses import dataclass

NOW_S = 1_800_000_000.0


@dataclass
class HandClock:
    """Wall time and the time that durations are measured by are one, and stand still until ``at_s`` is set."""

    at_s: float = NOW_S

    def now_s(self) -> float:
        return self.at_s

    def monotonic_s(self) -> float:
        return self.at_s
