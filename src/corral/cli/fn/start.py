"""`corral fn start`."""

from corral.cli.fn.words import Target, target_of, tell
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.running import with_client
from corral.client import Corral


def start(target: Target, json: Json = False, url: Url = "") -> None:
    """Allow instances of a revision again."""
    name, revision = target_of(target)

    async def work(corral: Corral) -> None:
        tell(await corral.functions.start(name, revision), json=json)

    with_client(url, work)


app = verb_app(start)
