"""`corral cc clean`."""

import os
import sys
from typing import Annotated

import typer

from corral.cli.cc.local import open_local
from corral.cli.lazy import verb_app
from corral.compile.control import tell
from corral.kernel.clock import SystemClock
from corral.kernel.units import format_size, parse_duration_s, parse_size

MaxSize = Annotated[str, typer.Option("--max-size", help='Remove the least recently used down to this: "5GB".')]
MaxAge = Annotated[str, typer.Option("--max-age", help='Remove what nobody used for so long: "30d".')]


def clean(max_size: MaxSize = "", max_age: MaxAge = "") -> None:
    """Remove stored results: all of them, or down to a size or an age."""
    local = open_local()
    before = local.store.scan()
    if max_size or max_age:
        local.store.clean(
            now_s=SystemClock().now_s(),
            to_bytes=parse_size(max_size, field="--max-size") if max_size else None,
            age_s=parse_duration_s(max_age, field="--max-age") if max_age else None,
        )
    else:
        local.store.wipe()
    after = local.store.scan()
    tell(os.environ, "rescan")
    sys.stdout.write(
        f"{local.directory}: {format_size(before.used_bytes)} in {before.entries} files -> "
        f"{format_size(after.used_bytes)} in {after.entries} files\n"
    )


app = verb_app(clean)
