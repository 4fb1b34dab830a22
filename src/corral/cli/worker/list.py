"""`corral worker list`."""

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import at, print_json, print_table
from corral.cli.running import with_client
from corral.client import Corral


def list_workers(json: Json = False, url: Url = "") -> None:
    """List workers."""

    async def work(corral: Corral) -> None:
        workers = await corral.workers.list()
        if json:
            print_json(workers)
            return
        print_table(
            ("WORKER", "STATE", "BUSY", "RUNTIMES", "LOAD", "LAST SEEN", "VERSION"),
            [
                (
                    each.id,
                    each.state,
                    f"{len(each.runs)}/{each.slots}",
                    ", ".join(each.runtimes),
                    f"{each.load:.2f}",
                    at(each.last_seen_s),
                    each.version,
                )
                for each in workers
            ],
            empty="no workers",
            optional=("VERSION", "LOAD"),
        )

    with_client(url, work)


app = verb_app(list_workers)
