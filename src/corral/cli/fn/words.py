"""What the verbs of `corral fn` have in common: their arguments, and words for what they show."""

from collections.abc import Sequence
from typing import Annotated

import typer

from corral.cli.output import note, print_json
from corral.client import ChangeAnswer, FunctionView, RevisionView, Share
from corral.kernel.errors import InvalidSpec

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


def ready(revision: RevisionView) -> str:
    """``2/3``: ready of wanted."""
    count = sum(each.phase.value == "ready" for each in revision.instances)
    return f"{count}/{max(count, revision.wanted)}"


def requests_of(function: FunctionView) -> int:
    """Requests counted since the scheduler started."""
    return sum(each.stats.requests for each in function.revisions)
