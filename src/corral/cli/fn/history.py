"""`corral fn history`."""

from corral.cli.fn.words import Name, split_text
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Limit, Url
from corral.cli.output import at, print_json, print_table
from corral.cli.running import with_client
from corral.client import Corral


def history(name: Name, limit: Limit = 50, json: Json = False, url: Url = "") -> None:
    """List every change of a function, newest first; of removed functions too."""

    async def work(corral: Corral) -> None:
        page = await corral.functions.history(name, limit=limit)
        if json:
            print_json(page)
            return
        print_table(
            ("VERSION", "WHEN", "WHO", "CHANGE", "DEFAULT"),
            [
                (str(each.version), at(each.at_s), each.actor, each.text, split_text(each.split))
                for each in page.changes
            ],
            empty="no changes",
            optional=("WHEN",),
        )

    with_client(url, work)


app = verb_app(history)
