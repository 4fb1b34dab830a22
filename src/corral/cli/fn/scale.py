"""`corral fn scale`."""

from typing import Annotated

import typer
from msgspec.structs import replace

from corral.cli.fn.words import IfVersion, Target, target_of, tell
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.running import with_client
from corral.client import Corral
from corral.kernel.errors import NotFound
from corral.kernel.units import parse_duration_s


def scale(
    target: Target,
    least: Annotated[int | None, typer.Option("--min", help="Instances at least, while it gets requests.")] = None,
    most: Annotated[int | None, typer.Option("--max", help="Instances at most.")] = None,
    per_instance: Annotated[float | None, typer.Option("--target", help="Requests in flight per instance.")] = None,
    idle: Annotated[str, typer.Option("--idle", metavar="DURATION", help="How long unneeded instances stay.")] = "",
    if_version: IfVersion = None,
    json: Json = False,
    url: Url = "",
) -> None:
    """Say how many instances a revision has; what is not given stays."""
    name, revision = target_of(target)
    given = {"min": least, "max": most, "target": per_instance}
    chosen: dict[str, float] = {key: value for key, value in given.items() if value is not None}
    if idle:
        chosen["idle_s"] = parse_duration_s(idle, field="--idle")

    async def work(corral: Corral) -> None:
        function = await corral.functions.get(name)
        found = next((each for each in function.revisions if each.name == revision), None)
        if found is None:
            raise NotFound(f'function "{name}" has no revision "{revision[:70]}"')
        wanted = replace(found.scale, **chosen)
        tell(await corral.functions.scale(name, revision, wanted, if_version=if_version), json=json)

    with_client(url, work)


app = verb_app(scale)
