"""docs/states/tasks.md is drawn from the table of legal events; `CORRAL_REWRITE=1 pytest …` draws it again."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from corral.tasks.events import Fact
from corral.tasks.machine import TRANSITIONS
from corral.tasks.model import Phase, Reason

DRAWING = Path(__file__).parents[2] / "docs" / "states" / "tasks.md"

HEAD = """# The life of a task

Drawn from `corral.tasks.machine.TRANSITIONS` by a test; do not edit. An event that leads back to the same phase changes
nothing that a user sees, or nothing at all: reports may be repeated and may be late. What the table does not list is
refused as a conflict.
"""


def words(event: type[Fact]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", event.__name__).lower()


def drawn() -> str:
    return "\n".join([HEAD, "```mermaid", *diagram(), "```", "", *table(), "", *reasons(), ""])


def diagram() -> Iterator[str]:
    yield "stateDiagram-v2"
    yield "    [*] --> unscheduled: submitted, waits for dependencies"
    yield "    [*] --> pending: submitted"
    yield "    [*] --> exception: submitted, a dependency had failed"
    for phase, events in TRANSITIONS.items():
        arrows: dict[Phase, list[str]] = {}
        for event, targets in events.items():
            for target in targets:
                if target is not phase:
                    arrows.setdefault(target, []).append(words(event))
        for target, names in arrows.items():
            yield f"    {phase.value} --> {target.value}: {', '.join(names)}"
    for phase in Phase:
        if phase.final:
            yield f"    {phase.value} --> [*]: expired"


def table() -> Iterator[str]:
    yield "| phase | event | leads to |"
    yield "|---|---|---|"
    for phase, events in TRANSITIONS.items():
        for event, targets in events.items():
            yield f"| {phase.value} | {words(event)} | {', '.join(target.value for target in targets)} |"


def reasons() -> Iterator[str]:
    yield "Reasons of an exception; those marked are retried while retries are left:"
    yield ""
    for reason in Reason:
        yield f"- `{reason.value}`{' (retried)' if reason.retried else ''}"


def test_the_drawing_of_a_tasks_life_is_the_machines() -> None:
    if os.environ.get("CORRAL_REWRITE"):
        DRAWING.write_text(drawn(), encoding="utf-8")

    assert DRAWING.read_text(encoding="utf-8") == drawn(), "stale: run this test with CORRAL_REWRITE=1"
