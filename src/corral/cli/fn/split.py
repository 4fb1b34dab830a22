"""`corral fn split`."""

from typing import Annotated

import typer

from corral.cli.fn.words import IfVersion, Name, tell
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.running import with_client
from corral.client import Corral, Share
from corral.kernel.errors import InvalidSpec


def split(
    name: Name,
    shares: Annotated[list[str], typer.Argument(help="Parts that sum to 100.", metavar="REVISION=PERCENT")],
    if_version: IfVersion = None,
    json: Json = False,
    url: Url = "",
) -> None:
    """Split the requests between revisions, such as `corral fn split hello v1=95 v2=5`."""
    chosen = [_share(each) for each in shares]

    async def work(corral: Corral) -> None:
        tell(await corral.functions.split(name, chosen, if_version=if_version), json=json)

    with_client(url, work)


def _share(text: str) -> Share:
    revision, equals, percent = text.partition("=")
    if not equals or not percent.removesuffix("%").isdecimal():
        raise InvalidSpec(f'"{text}" is not REVISION=PERCENT, such as "v1=95"', field="shares")
    return Share(revision=revision, percent=int(percent.removesuffix("%")[:9]))


app = verb_app(split)
