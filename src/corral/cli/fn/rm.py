"""`corral fn rm`."""

from typing import Annotated

import typer

from corral.cli.fn.words import tell
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.running import with_client
from corral.client import Corral


def remove(
    target: Annotated[str, typer.Argument(help="FUNCTION or FUNCTION@REVISION.", metavar="FUNCTION[@REVISION]")],
    json: Json = False,
    url: Url = "",
) -> None:
    """Remove a revision that gets no requests, or a function with all its revisions; a rollback brings it back."""
    name, _, revision = target.partition("@")

    async def work(corral: Corral) -> None:
        tell(await corral.functions.remove(name, revision), json=json)

    with_client(url, work)


app = verb_app(remove)
