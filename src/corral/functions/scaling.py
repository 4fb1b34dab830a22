"""How many instances a revision should have, and whether it is fit to have any; pure.

Up at once, down only after ``idle_s`` of needing less: a burst must not start what the last one has just ended.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from corral.functions.config import FunctionsConfig
from corral.functions.model import Scale

_STARTS_KEPT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleState:
    """What is remembered between two looks: how many are wanted, and since when fewer would do (at most ``low``)."""

    wanted: int = 0
    low: int = 0
    low_since_s: float | None = None


def scaled(state: ScaleState, scale: Scale, *, demand: int, serving: bool, now_s: float) -> ScaleState:
    """The next state for ``demand`` requests that wait or are in flight.

    ``serving``: the revision has a part of the split; ``scale.min`` holds for such ones only.
    """
    need = max(needed(scale, demand), scale.min if serving else 0)
    wanted = min(state.wanted, scale.max)
    if need >= wanted:
        return ScaleState(wanted=min(need, scale.max))
    since_s = now_s if state.low_since_s is None else state.low_since_s
    low = max(state.low, need) if state.low_since_s is not None else need
    if now_s < since_s + scale.idle_s:
        return ScaleState(wanted=wanted, low=low, low_since_s=since_s)
    return ScaleState(wanted=low, low=need, low_since_s=now_s if need < low else None)


def without(scale: Scale, elsewhere: int) -> Scale:
    """What is left of it for a scheduler when others have so many instances already."""
    if not elsewhere:
        return scale
    return msgspec.structs.replace(scale, min=max(0, scale.min - elsewhere), max=max(0, scale.max - elsewhere))


def needed(scale: Scale, demand: int) -> int:
    """Instances for so many requests, at most ``scale.max``."""
    return min(math.ceil(demand / scale.target), scale.max) if demand > 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the starts and requests of a revision tell about it.

    Attributes:
        failures: rounds of failed starts, or of early ends, in a row; ``blamed`` rounds of starts by its own fault.
        retry_at_s: no new start before then.
        ready_s: when a start succeeded last; None after one that failed.
        seen: (instant, requests, bad ones) as counted since the scheduler started, newest last.
        broken: why it must not run any more; "" while it may.
        last_failure: of the newest failed start, in one sentence.
    """

    failures: int = 0
    blamed: int = 0
    retry_at_s: float = 0.0
    ready_s: float | None = None
    seen: tuple[tuple[float, int, int], ...] = ()
    broken: str = ""
    last_failure: str = ""


def start_failed(health: Health, *, blame: bool, text: str, now_s: float, config: FunctionsConfig) -> Health:
    """An instance could not be started, or ended by itself.

    Those that fail before the next start is allowed, such as all in one process, are one round. An instance that was
    well for ``breaker_window_s`` begins anew.
    """
    if now_s < health.retry_at_s:
        return replace(health, blamed=max(health.blamed, int(blame)), last_failure=text)
    well = health.ready_s is not None and now_s >= health.ready_s + config.breaker_window_s
    failures = 1 if well else min(health.failures + 1, _STARTS_KEPT)
    pause_s = min(config.backoff_first_s * 2.0 ** min(failures - 1, 60), config.backoff_last_s)
    blamed = health.blamed + 1 if blame else health.blamed
    broken = health.broken
    if blamed >= config.breaker_failures and not broken:
        broken = f"{blamed} starts failed in a row, the last one with: {text}"
    retry_at_s = now_s + pause_s
    return replace(
        health,
        failures=failures,
        blamed=blamed,
        retry_at_s=retry_at_s,
        ready_s=None,
        broken=broken,
        last_failure=text,
    )


def became_ready(health: Health, *, now_s: float) -> Health:
    """A start succeeded."""
    return replace(health, blamed=0, retry_at_s=0.0, ready_s=now_s, last_failure="")


def counted(health: Health, *, requests: int, bad: int, now_s: float, config: FunctionsConfig) -> Health:
    """The totals of its requests, and of those that trapped or timed out, are so high now.

    It breaks when no request at all went well within the window, and there were enough of them: one caller's bad input
    must not take a function from all others.
    """
    seen = health.seen
    while len(seen) > 1 and seen[1][0] <= now_s - config.breaker_window_s:
        seen = seen[1:]
    if not seen or (requests, bad) != seen[-1][1:]:
        seen = (*seen, (now_s, requests, bad))
    recent, recent_bad = requests - seen[0][1], bad - seen[0][2]
    broken = health.broken
    if not broken and recent >= config.breaker_requests and recent_bad >= recent:
        broken = f"all of its last {recent} requests trapped or timed out"
    return replace(health, seen=seen, broken=broken)
