"""`corral fn logs`."""

import sys
from contextlib import aclosing
from typing import Annotated

import typer

from corral.cli.fn.words import Name
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Limit, Url
from corral.cli.output import at, print_json, safe_text
from corral.cli.running import with_client
from corral.client import Corral, LogLine


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    revision: Annotated[str, typer.Option("--revision", "-r", help="Only of this revision.")] = "",
    request: Annotated[str, typer.Option("--request", help="Only of this request.")] = "",
    limit: Limit = 200,
    json: Json = False,
    url: Url = "",
) -> None:
    """Print what a function wrote, the newest lines; -f follows it."""

    async def work(corral: Corral) -> None:
        lines = await corral.functions.logs(name, limit=limit, revision=revision, request_id=request)
        if json and not follow:
            print_json(lines)
            return
        for line in lines:
            _print(line, json=json)
        if follow:
            last = lines[-1].seq if lines else 0
            following = corral.functions.follow_logs(name, after=last, revision=revision, request_id=request)
            async with aclosing(following) as coming:
                async for line in coming:
                    _print(line, json=json)

    with_client(url, work)


def _print(line: LogLine, *, json: bool) -> None:
    if json:
        print_json(line)
        return
    text = safe_text(line.text.rstrip("\n"))
    sys.stdout.write(f"{at(line.at_s)} {line.key.revision} {line.request_id} {line.stream}: {text}\n")
    sys.stdout.flush()


app = verb_app(logs)
