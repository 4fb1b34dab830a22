"""`corral fn list`."""

from corral.cli.fn.words import ready, requests_of, split_text
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import at, print_json, print_table
from corral.cli.running import with_client
from corral.client import Corral, FunctionView


def list_functions(json: Json = False, url: Url = "") -> None:
    """List functions."""

    async def work(corral: Corral) -> None:
        functions = await corral.functions.list()
        if json:
            print_json(functions)
            return
        print_table(
            ("FUNCTION", "DEFAULT", "REVISIONS", "INSTANCES", "REQUESTS", "CHANGED", "URL"),
            [_row(each) for each in functions],
            empty="no functions; deploy one with `corral fn deploy NAME FILE.wasm`",
            optional=("URL", "CHANGED"),
        )

    with_client(url, work)


def _row(function: FunctionView) -> tuple[str, ...]:
    live = [ready(each).split("/") for each in function.revisions]
    return (
        function.name,
        split_text(function.split),
        str(len(function.revisions)),
        f"{sum(int(have) for have, _ in live)}/{sum(int(want) for _, want in live)}",
        str(requests_of(function)),
        at(function.changed_s),
        function.urls[0] if function.urls else "",
    )


app = verb_app(list_functions)
