"""`corral fn rollback`."""

from typing import Annotated

import typer

from corral.cli.fn.words import IfVersion, Name, tell
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.running import with_client
from corral.client import Corral


def rollback(
    name: Name,
    to: Annotated[
        int | None, typer.Option("--to", help="A version of `corral fn history`; the last other split if not given.")
    ] = None,
    if_version: IfVersion = None,
    json: Json = False,
    url: Url = "",
) -> None:
    """Go back to an earlier state: split, scales, and revisions or a function that were removed since."""

    async def work(corral: Corral) -> None:
        tell(await corral.functions.rollback(name, to, if_version=if_version), json=json)

    with_client(url, work)


app = verb_app(rollback)
