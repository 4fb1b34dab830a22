"""`corral certificate new`."""

from pathlib import Path
from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.processes import start


def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where scheduler.pem and scheduler.key go.")],
    names: Annotated[
        list[str] | None,
        typer.Option("--name", "-n", metavar="HOST|ADDRESS", help="What clients call the scheduler; this host's name."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a self-signed certificate for a scheduler.

    Clients and workers trust it by its fingerprint, which is printed with what each of them must be told.
    """
    extra = {"--new": str(directory), "--names": ",".join(names or []), "--shape": "json" if json else ""}
    start("certificate", {}, extra=extra)


app = verb_app(new)
