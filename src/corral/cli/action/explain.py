"""`corral action explain`."""

import sys
from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import print_json, safe_text
from corral.cli.running import with_client
from corral.client import Corral
from corral.kernel.digest import Digest


def explain(
    first: Annotated[str, typer.Argument(help="Digest of one action.", metavar="DIGEST")],
    second: Annotated[str, typer.Argument(help="Digest of another.", metavar="DIGEST")],
    json: Json = False,
    url: Url = "",
) -> None:
    """Say what differs between two actions: which input, which argument, which variable."""
    both = Digest.parse(first), Digest.parse(second)

    async def work(corral: Corral) -> list[str]:
        return await corral.actions.explain(*both)

    sentences = with_client(url, work)
    if json:
        print_json({"differences": sentences})
        return
    for sentence in sentences or ["they are the same"]:
        sys.stdout.write(safe_text(sentence) + "\n")


app = verb_app(explain)
