"""`corral task schema`."""

from corral.cli.lazy import verb_app
from corral.cli.options import Url
from corral.cli.output import print_json
from corral.cli.running import with_client
from corral.client import Corral


def schema(url: Url = "") -> None:
    """Print the JSON Schema of a task's payload, for editors and for whoever writes payloads."""

    async def work(corral: Corral) -> None:
        print_json(await corral.tasks.payload_schema())

    with_client(url, work)


app = verb_app(schema)
