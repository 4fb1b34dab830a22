"""`corral fn call`."""

import sys
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Annotated

import typer

from corral.cli.fn.words import trace_lines
from corral.cli.lazy import verb_app
from corral.cli.options import Url
from corral.cli.output import note, safe_bytes
from corral.cli.running import with_client
from corral.client import CallAnswer, Corral
from corral.kernel.errors import InvalidSpec
from corral.kernel.units import format_duration


def call(
    target: Annotated[str, typer.Argument(help="FUNCTION or FUNCTION@REVISION.", metavar="FUNCTION[@REVISION]")],
    path: Annotated[str, typer.Argument(help="Path and query for the function.")] = "/",
    method: Annotated[str, typer.Option("--method", "-X", help="GET, or POST with data, if not given.")] = "",
    data: Annotated[str, typer.Option("--data", "-d", help="Body; @FILE sends a file, @- what comes in.")] = "",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", metavar="NAME: VALUE")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show what the request went through, too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the body.")] = False,
    url: Url = "",
) -> int:
    """Call a function: its answer on stdout; status, time, warm or cold, and which instance on stderr.

    The exit status is 0 for an answer below 400, else 1.
    """
    name, _, revision = target.partition("@")
    headers = dict(_header(each) for each in header or ())
    if trace:
        headers["x-corral-trace"] = "1"
    body = _body(data)

    async def work(corral: Corral) -> int:
        function = await corral.functions.get(name)
        sent = method or ("POST" if data else "GET")
        calling = corral.functions.call(
            function, revision=revision, path=path, method=sent, headers=headers, content=body
        )
        async with calling as answer:
            if not quiet:
                note("", _told(answer))
            await _print(answer.body)
            if trace:
                found = await corral.functions.wait_trace(name, answer.request_id)
                for line in trace_lines(found) if found is not None else ("no trace of it came",):
                    note("", line)
            return 0 if answer.status < 400 else 1

    return with_client(url, work)


def _told(answer: CallAnswer) -> str:
    start = "cold" if answer.cold else "warm"
    who = f"{start}, revision {answer.revision}, {answer.instance}" if answer.revision else "no instance answered"
    return f"{answer.status} in {format_duration(answer.took_s)}, {who}, request {answer.request_id}"


async def _print(body: AsyncIterable[bytes]) -> None:
    raw = not sys.stdout.isatty()
    async for piece in body:
        sys.stdout.buffer.write(piece if raw else safe_bytes(piece))
        sys.stdout.buffer.flush()


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise InvalidSpec(f'--header: "{text}" is not NAME: VALUE', field="header")
    return name.strip(), value.strip()


def _body(data: str) -> bytes | None:
    if data == "@-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise InvalidSpec(f"--data: {data[1:]} cannot be read: {error.strerror}", field="data") from error
    return data.encode() if data else None


app = verb_app(call)
