"""`corral worker drain`."""

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url, WorkerId
from corral.cli.output import note, print_json
from corral.cli.running import with_client
from corral.client import Corral


def drain(
    worker_id: WorkerId,
    json: Json = False,
    url: Url = "",
) -> None:
    """Let a worker finish what it runs and take nothing new."""

    async def work(corral: Corral) -> None:
        worker = await corral.workers.drain(worker_id)
        if json:
            print_json(worker)
        else:
            note("", f"{worker.id} takes nothing new, also after a restart; runs on it now: {len(worker.runs)}")

    with_client(url, work)


app = verb_app(drain)
