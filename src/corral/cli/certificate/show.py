"""`corral certificate show`."""

from pathlib import Path
from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.processes import start


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate in PEM.")],
    json: Json = False,
) -> None:
    """Print the fingerprint of a certificate: what clients and workers pin."""
    start("certificate", {}, extra={"--show": str(file), "--shape": "json" if json else ""})


app = verb_app(show)
