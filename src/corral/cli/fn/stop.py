"""`corral fn stop`."""

from corral.cli.fn.words import Target, target_of, tell
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.running import with_client
from corral.client import Corral


def stop(target: Target, json: Json = False, url: Url = "") -> None:
    """End the instances of a revision, and allow no more; its requests get 503."""
    name, revision = target_of(target)

    async def work(corral: Corral) -> None:
        tell(await corral.functions.stop(name, revision), json=json)

    with_client(url, work)


app = verb_app(stop)
