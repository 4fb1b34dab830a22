"""`corral task submit`: one definition or a batch, as JSON or TOML, from a file or stdin."""

import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import print_json
from corral.cli.running import with_client
from corral.client import Corral
from corral.kernel.errors import InvalidSpec
from corral.kernel.json import MALFORMED, why_malformed


def submit(
    file: Annotated[str, typer.Argument(help='JSON or TOML with one task, or with "tasks"; "-" is stdin.')] = "-",
    key: Annotated[str, typer.Option("--key", help="Idempotency key: repeating it queues nothing new.")] = "",
    json: Json = False,
    url: Url = "",
) -> None:
    """Queue tasks from a file or stdin; prints their ids."""
    body = _read(file)

    async def work(corral: Corral) -> None:
        tasks = await corral.tasks.submit_raw(body, idempotency_key=key)
        if json:
            print_json(tasks)
        else:
            sys.stdout.write("".join(f"{task.id}\n" for task in tasks))

    with_client(url, work)


def _read(file: str) -> Any:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidSpec(f"{file}: cannot be read: {error.strerror}", field="file") from error
    try:
        return tomllib.loads(data.decode()) if file.endswith(".toml") else msgspec.json.decode(data)
    except (tomllib.TOMLDecodeError, *MALFORMED) as error:
        kind, name = "TOML" if file.endswith(".toml") else "JSON", "stdin" if file == "-" else file
        raise InvalidSpec(f"{name}: is not {kind}: {why_malformed(error)}", field="file") from error


app = verb_app(submit)
