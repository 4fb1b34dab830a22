"""What the verbs of `corral fn` have in common: their arguments, and words for what they show."""

from collections.abc import Sequence
from typing import Annotated

import typer

from corral.cli.output import note, print_json
from corral.client import ChangeAnswer, FunctionView, RevisionView, Share, Trace
from corral.kernel.errors import InvalidSpec
from corral.kernel.units import format_duration

Name = Annotated[str, typer.Argument(help="Name of the function.", metavar="FUNCTION")]
Target = Annotated[str, typer.Argument(help="FUNCTION@REVISION.", metavar="FUNCTION@REVISION")]
IfVersion = Annotated[
    int | None, typer.Option("--if-version", help="Only if the function is at this version (`corral fn show`).")
]


def target_of(text: str) -> tuple[str, str]:
    """``hello@v1``. Raises InvalidSpec without a revision."""
    name, at, revision = text.partition("@")
    if not at or not revision:
        raise InvalidSpec(f'"{text}" names no revision; write for example "{name or "hello"}@v1"', field="target")
    return name, revision


def split_text(split: Sequence[Share]) -> str:
    """``v1 95 %, v2 5 %``; ``none`` for no default."""
    return ", ".join(f"{each.revision} {each.percent} %" for each in split) or "none"


def tell(answer: ChangeAnswer, *, json: bool) -> None:
    """What a change did."""
    if json:
        print_json(answer)
        return
    function = answer.function
    what = answer.text if answer.changed else "nothing to change"
    note("", f"{function.name}: {what} (version {function.version}, default: {split_text(function.split)})")


def trace_lines(trace: Trace) -> list[str]:
    """A request's steps, one a line, with when they began."""
    start = "cold" if trace.cold else "warm"
    who = f"{trace.key.revision}, {trace.instance or 'no instance'}"
    lines = [
        f"trace {trace.trace_id}: {trace.status or 'cut off'} in {format_duration(trace.duration_s)}, {start}, {who}"
    ]
    lines += [f"  {each.name:<12} at {_ms(each.start_s)}  took {_ms(each.duration_s)}" for each in trace.spans]
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:9.3f} ms"


def ready(revision: RevisionView) -> str:
    """``2/3``: ready of wanted."""
    count = sum(each.phase.value == "ready" for each in revision.instances)
    return f"{count}/{max(count, revision.wanted)}"


def requests_of(function: FunctionView) -> int:
    """Requests counted since the scheduler started."""
    return sum(each.stats.requests for each in function.revisions)
