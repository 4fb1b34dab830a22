"""`corral worker undrain`."""

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url, WorkerId
from corral.cli.output import note, print_json
from corral.cli.running import with_client
from corral.client import Corral


def undrain(
    worker_id: WorkerId,
    json: Json = False,
    url: Url = "",
) -> None:
    """Let a draining worker take work again."""

    async def work(corral: Corral) -> None:
        worker = await corral.workers.undrain(worker_id)
        if json:
            print_json(worker)
        else:
            note("", f"{worker.id} takes work again")

    with_client(url, work)


app = verb_app(undrain)
