"""`corral fn trace`."""

from typing import Annotated

import typer

from corral.cli.fn.words import Name, trace_lines
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Limit, Url
from corral.cli.output import at, print_json, print_table, safe_text
from corral.cli.running import with_client
from corral.client import Corral
from corral.kernel.errors import NotFound
from corral.kernel.units import format_duration


def trace(
    name: Name,
    request: Annotated[str, typer.Argument(help="Id of a request; without one the newest are listed.")] = "",
    limit: Limit = 20,
    json: Json = False,
    url: Url = "",
) -> None:
    """Show what a request went through: route, queue, instantiate, run.

    Requests are traced when their caller samples them (traceparent) or asks for it (`corral fn call --trace`).
    """

    async def work(corral: Corral) -> None:
        found = await corral.functions.traces(name, limit=1 if request else limit, request_id=request)
        if request and not found:
            raise NotFound(f'there is no trace of a request "{request[:70]}"', cure="ask with `corral fn call --trace`")
        if json:
            print_json(found)
        elif request:
            print("\n".join(trace_lines(found[0])))  # noqa: T201 (what was asked for)
        else:
            print_table(
                ("REQUEST", "REVISION", "WHEN", "STATUS", "START", "TOOK", "ASKED"),
                [
                    (
                        each.request_id,
                        each.key.revision,
                        at(each.at_s),
                        str(each.status or "cut off"),
                        "cold" if each.cold else "warm",
                        format_duration(each.duration_s),
                        safe_text(f"{each.method} {each.path}"),
                    )
                    for each in found
                ],
                empty="no traces; ask with `corral fn call --trace`",
                optional=("ASKED", "START"),
            )

    with_client(url, work)


app = verb_app(trace)
