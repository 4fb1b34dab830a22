"""`corral fn switch`."""

from typing import Annotated

import typer

from corral.cli.fn.words import IfVersion, Name, tell
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.running import with_client
from corral.client import Corral
from corral.kernel.errors import InvalidSpec


def switch(
    name: Name,
    revision: Annotated[str, typer.Argument(help="Name of the revision.", metavar="REVISION")],
    off: Annotated[bool, typer.Option("--off", help="Take the default from it instead.")] = False,
    successor: Annotated[str, typer.Option("--successor", help="With --off: who gets it; nobody if not given.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Although its instances cannot start.")] = False,
    if_version: IfVersion = None,
    json: Json = False,
    url: Url = "",
) -> None:
    """Make a revision the default, atomically; or take the default from it."""
    if successor and not off:
        raise InvalidSpec("--successor: only with --off", field="successor")

    async def work(corral: Corral) -> None:
        if off:
            answer = await corral.functions.switch_off(name, revision, successor=successor, if_version=if_version)
        else:
            answer = await corral.functions.switch_on(name, revision, force=force, if_version=if_version)
        tell(answer, json=json)

    with_client(url, work)


app = verb_app(switch)
