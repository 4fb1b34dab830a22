"""When a child that died is started again: pure.

Exponential back-off, reset by a child that lived long enough; an intensity limit, because a child that dies at
once every time needs a person.
"""

from dataclasses import dataclass, replace

from corral.app.config_sections import SupervisorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """A child's history: when it was started again within the window (monotonic), and its failures in a row."""

    at_s: tuple[float, ...] = ()
    in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class StartAgain:
    """Start the child after ``pause_s``."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop everything: it died too often."""

    restarts: int


def died(
    history: Restarts, *, started_s: float, now_s: float, config: SupervisorConfig
) -> tuple[Restarts, StartAgain | GiveUp]:
    """A child that was started at ``started_s`` died at ``now_s``: what to do, and its history from then on."""
    recent = tuple(at_s for at_s in history.at_s if now_s - at_s < config.restarts_within_s)
    if len(recent) >= config.restarts:
        return replace(history, at_s=recent), GiveUp(len(recent))
    lived_s = now_s - started_s
    in_a_row = 0 if lived_s >= config.backoff_max_s else history.in_a_row
    pause_s = min(config.backoff_s * 2**in_a_row, config.backoff_max_s)
    return Restarts(at_s=(*recent, now_s), in_a_row=in_a_row + 1), StartAgain(pause_s)
