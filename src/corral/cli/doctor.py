"""`corral doctor`."""

import asyncio
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import structlog
import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import colours, print_json, safe_text
from corral.kernel.clock import SystemClock
from corral.sandboxes.doctor import Report, examine


def doctor(
    directory: Annotated[
        Path | None, typer.Option("--data-dir", envvar="CORRAL_DATA_DIR", help="Where the data lies, or would.")
    ] = None,
    json: Json = False,
) -> int:
    """Try every kind of isolation on this machine and say what works; exits with 1 when the default does not."""
    # the report says what a line of log would; stdout is its alone
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    report = asyncio.run(examine(clock=SystemClock(), directory=directory))
    if json:
        print_json(report)
    else:
        sys.stdout.write("\n".join(_lines(report)) + "\n")
    return 0 if report.healthy else 1


def _lines(report: Report) -> Iterable[str]:
    yield "Runtimes"
    for runtime in report.runtimes:
        yield from _finding(runtime.works, runtime.name, runtime.detail, runtime.cure)
    yield "Machine"
    for fact in report.facts:
        yield from _finding(fact.good, fact.name, fact.detail, fact.cure)


def _finding(good: bool, name: str, detail: str, cure: str) -> Iterable[str]:
    colour = "\x1b[32m" if good else "\x1b[33m"
    mark = "ok " if good else "no "
    shown = f"{colour}{mark}\x1b[0m" if colours(sys.stdout) else mark
    yield f"  {shown} {name}: {safe_text(detail)}"
    if cure:
        yield f"      cure: {safe_text(cure)}"


app = verb_app(doctor)
