"""Long histories of a task, told in tests/stories/tasks/*.txt; `CORRAL_REWRITE=1 pytest …` writes the answers again.

A story is blocks of commands, `----`, and what the machine answered: one line per effect, then the life. Every command
may carry ``at=SECONDS``; otherwise no time passes.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corral.kernel.errors import CorralError
from corral.tasks.events import (
    AbortRun,
    AmendAudit,
    CancelAsked,
    Claimed,
    ClockTicked,
    DependencyResolved,
    Effect,
    Event,
    ForgetTask,
    Reclaimed,
    RecordEvent,
    RerunAsked,
    ResolvedReported,
    StartedReported,
    TellDependents,
    WakeClaimers,
    WorkerLost,
    WriteAudit,
)
from corral.tasks.machine import due_s, step, submitted
from corral.tasks.model import Phase, Reason, Requires, Resolved, TaskDefinition, TaskLife

STORIES = Path(__file__).parents[1] / "stories" / "tasks"
LEASE_S = 30.0

Options = dict[str, str]


class Teller:
    """Carries out the commands of one story."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.life: TaskLife | None = None

    def tell(self, command: str) -> Iterator[str]:
        verb, *words = command.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        self.now_s = float(options.pop("at", self.now_s))
        try:
            effects = self._submit(options) if verb == "submit" else self._step(EVENTS[verb](self, plain, options))
        except CorralError as error:
            yield f"{type(error).__name__}: {error}"
            return
        for effect in effects:
            yield describe(effect)

    def _submit(self, options: Options) -> tuple[Effect, ...]:
        definition = TaskDefinition(
            payload={},
            retries=int(options.get("retries", 5)),
            deadline_s=float(options.get("deadline", 1000)),
            expires_s=float(options.get("expires", 1000)),
            requires=Requires(options.get("requires", "all-completed")),
        )
        needs = tuple(filter(None, options.get("needs", "").split(",")))
        self.life, effects = submitted(definition, waits_for=needs, failed=options.get("failed", ""), now_s=self.now_s)
        return effects

    def _step(self, event: Event) -> tuple[Effect, ...]:
        assert self.life is not None, "a story begins with submit"
        self.life, effects = step(self.life, event, now_s=self.now_s)
        return effects

    def standing(self) -> str:
        assert self.life is not None
        life = self.life
        parts = [f"task {life.phase.value}" + (f" ({life.reason.value})" if life.reason else "")]
        for number, run in enumerate(life.runs):
            reason = f" ({run.reason.value})" if run.reason else ""
            holder = f" {run.worker} token={run.token}" if run.worker else ""
            parts.append(f"run {number} {run.created.value}: {run.phase.value}{reason}{holder}")
        due = due_s(life)
        parts.append(f"retries={life.retries_left} due={'never' if due is None else f'{due:g}'}")
        return " | ".join(parts)


def describe(effect: Effect) -> str:
    match effect:
        case RecordEvent():
            return f"  {effect.kind}: {effect.text}"
        case WakeClaimers():
            return "  -> wake claimers"
        case TellDependents():
            return "  -> tell dependents"
        case AbortRun():
            return f"  -> abort run {effect.run} token={effect.token} on {effect.worker}"
        case WriteAudit():
            return f"  -> audit run {effect.run}" + ("" if effect.report else " (ended by the queue)")
        case AmendAudit():
            return f"  -> amend audit of run {effect.run}"
        case ForgetTask():
            return "  -> forget"


def _resolved(teller: Teller, plain: list[str], options: Options) -> Event:
    phase, _, reason = plain[0].partition(":")
    report = Resolved(at_s=teller.now_s, phase=Phase(phase), reason=Reason(reason) if reason else None)
    return ResolvedReported(int(options["run"]), int(options["token"]), report)


def _dependency(teller: Teller, plain: list[str], options: Options) -> Event:
    return DependencyResolved(plain[0], None if plain[1] == "forgotten" else Phase(plain[1]))


EVENTS: dict[str, Callable[[Teller, list[str], Options], Event]] = {
    "claim": lambda teller, plain, options: Claimed(plain[0], teller.now_s + LEASE_S),
    "reclaim": lambda teller, plain, options: Reclaimed(
        int(options["run"]), int(options["token"]), teller.now_s + LEASE_S
    ),
    "start": lambda teller, plain, options: StartedReported(int(options["run"]), int(options["token"]), teller.now_s),
    "resolve": _resolved,
    "lost": lambda teller, plain, options: WorkerLost(plain[0]),
    "tick": lambda teller, plain, options: ClockTicked(),
    "cancel": lambda teller, plain, options: CancelAsked(plain[0]),
    "rerun": lambda teller, plain, options: RerunAsked(plain[0], teller.now_s + 1000, 5),
    "dependency": _dependency,
}


def told(text: str) -> str:
    teller = Teller()
    blocks = []
    for block in text.strip().split("\n\n"):
        commands = list(itertools.takewhile(lambda line: line != "----", block.strip().splitlines()))
        lines = [line for command in commands if not command.startswith("#") for line in teller.tell(command)]
        blocks.append("\n".join([*commands, "----", *lines, teller.standing()]))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", sorted(STORIES.glob("*.txt")), ids=lambda path: path.stem)
def test_a_story_ends_as_it_is_written(path: Path) -> None:
    written = path.read_text(encoding="utf-8")
    if os.environ.get("CORRAL_REWRITE"):
        path.write_text(told(written), encoding="utf-8")

    assert path.read_text(encoding="utf-8") == told(written)


def test_there_are_stories() -> None:
    assert len(list(STORIES.glob("*.txt"))) >= 5
