"""A worker's life under every history of events; and the picture of it that the documentation shows."""

import os
from pathlib import Path
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from corral.fleet.machine import (
    LEGAL,
    Attended,
    DrainAsked,
    DrainLifted,
    Event,
    ExpireLeases,
    Registered,
    Removed,
    StreamLost,
    TimePassed,
    WorkerLife,
    due_s,
    feasible,
    joined,
    may_join,
    step,
)
from corral.fleet.model import FleetConfig, WorkerPhase

CONFIG: Final = FleetConfig()
PAGE: Final = Path(__file__).parents[2] / "docs" / "states" / "workers.md"
SIMPLE: Final[tuple[Event, ...]] = (StreamLost(), TimePassed(), DrainAsked(), DrainLifted(), Removed())
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from(["one", "two"]).map(Registered),
    st.builds(Attended, runs=st.integers(0, 2), draining=st.booleans()),
    st.sampled_from(SIMPLE),
)
HISTORIES = st.lists(st.tuples(st.floats(0, 40), EVENTS), max_size=40)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(HISTORIES)
def test_every_history_keeps_the_promises(history: list[tuple[float, Event]]) -> None:
    life, now_s = joined("wrk_a", "one", now_s=0.0), 0.0
    for passed_s, event in history:
        before, now_s = life, now_s + passed_s
        life, effects = step(before, event, now_s=now_s, config=CONFIG)

        expired = ExpireLeases("wrk_a") in effects
        fell = life.phase is WorkerPhase.EVICTED and before.phase is not WorkerPhase.EVICTED
        replaced = life.instance != before.instance and before.phase is not WorkerPhase.EVICTED
        assert expired is (fell or replaced)
        assert not (feasible(life, runtimes=(), wanted="") and (life.drain_asked or life.draining))
        assert life.attended is (life.phase in (WorkerPhase.READY, WorkerPhase.DRAINING, WorkerPhase.DRAINED))
        if before.phase not in LEGAL[type(event)]:
            assert (life, effects) == (before, ())
        if isinstance(event, TimePassed) and (at_s := due_s(before, CONFIG)) is not None:
            assert fell is (now_s >= at_s)


def test_a_second_process_may_join_only_when_the_first_is_not_connected() -> None:
    life = joined("wrk_a", "one", now_s=0.0)
    connected, _ = step(life, Attended(runs=0, draining=False), now_s=1.0, config=CONFIG)
    lost, _ = step(connected, StreamLost(), now_s=2.0, config=CONFIG)

    assert may_join(None, "two")
    assert may_join(life, "two")
    assert not may_join(connected, "two")
    assert may_join(connected, "one")
    assert may_join(lost, "two")


def test_the_page_about_workers_is_drawn_from_the_machine() -> None:
    drawn = page()
    if os.environ.get("CORRAL_REWRITE"):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(drawn)

    assert PAGE.read_text() == drawn, "stale: run the tests once with CORRAL_REWRITE=1"


def page() -> str:
    arrows = sorted({arrow for event in examples() for life in lives() for arrow in moves(life, event)})
    drawing = "\n".join(f"    {before} --> {after}: {name}" for before, after, name in arrows)
    return (
        "# The life of a worker\n\n"
        "Drawn from `corral.fleet.machine` by a test. An event that has no arrow leaves the phase as it is.\n"
        "`lost` keeps its leases for `fleet.reconnect_grace_s`; `evicted` has none.\n\n"
        f"```mermaid\nstateDiagram-v2\n    [*] --> registered\n{drawing}\n```\n"
    )


def examples() -> list[Event]:
    attended: list[Event] = [Attended(runs=runs, draining=draining) for runs in (0, 1) for draining in (False, True)]
    return [Registered("one"), Registered("two"), *attended, *SIMPLE]


def lives() -> list[WorkerLife]:
    return [
        WorkerLife(worker_id="wrk_a", instance="one", phase=phase, seen_s=0.0, runs=runs, drain_asked=asked)
        for phase in WorkerPhase
        for runs in (0, 1)
        for asked in (False, True)
        if consistent(phase, runs, asked=asked)
    ]


def consistent(phase: WorkerPhase, runs: int, *, asked: bool) -> bool:
    match phase:
        case WorkerPhase.READY:
            return not asked
        case WorkerPhase.DRAINING:
            return asked and runs > 0
        case WorkerPhase.DRAINED:
            return asked and runs == 0
        case _:
            return True


def moves(life: WorkerLife, event: Event) -> set[tuple[str, str, str]]:
    after, _ = step(life, event, now_s=1000.0, config=CONFIG)
    if after.phase is life.phase:
        return set()
    return {(life.phase.value, after.phase.value, type(event).__name__)}
