"""`corral action run`: upload, execute or find, fetch, and leave with the command's own status."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import note, print_json
from corral.cli.running import with_client
from corral.cli.spec import environment_of
from corral.client import Corral
from corral.client.action_model import ActionCommand, ExecutionView
from corral.kernel.concurrency import finish
from corral.kernel.errors import CorralError, InvalidSpec
from corral.kernel.units import parse_duration_s

_CANCEL_S = 5.0
_TIMED_OUT = 124
_REFUSED = 1


def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after `--`.", metavar="CMD")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-I", metavar="LOCAL[:PATH]", help="A file or directory, and where it goes."),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--output", "-o", metavar="PATH", help="A file or directory that the command leaves."),
    ] = None,
    into: Annotated[Path, typer.Option("--into", help="Where outputs are written.")] = Path(),
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="K=V", help="Environment variable; there are no others.")
    ] = None,
    workdir: Annotated[str, typer.Option("--workdir", "-w", help="Where to start, below the inputs.")] = "",
    platform: Annotated[
        list[str] | None,
        typer.Option("--platform", "-p", metavar="K=V", help="image, runtime, memory, cpus, network, pool, …"),
    ] = None,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help='Longest run, such as "10m".')] = "",
    salt: Annotated[str, typer.Option("--salt", help="Separates equal actions.")] = "",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither look for a result nor keep it.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run it even if there is a result.")] = False,
    priority: Annotated[int, typer.Option("--priority", help="Lower runs sooner.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what the command printed.")] = False,
    json: Json = False,
    url: Url = "",
) -> int:
    """Run a command as an action: the same command on the same inputs runs once, ever.

    The command sees its inputs and nothing else of this machine, in a directory of its own; only what is named with
    --output comes back. The exit status is the command's own.
    """
    definition = ActionCommand(
        arguments=tuple(command),
        environment=tuple(sorted(environment_of(env or []).items())),
        output_paths=tuple(sorted(outputs or [])),
        working_directory=workdir,
        platform=tuple(sorted(environment_of(platform or [], option="--platform").items())),
    )
    places = dict(_place(each) for each in inputs or [])
    timeout_s = parse_duration_s(timeout, field="--timeout") if timeout else None

    async def work(corral: Corral) -> int:
        digest = await corral.actions.upload(
            definition, places, timeout_s=timeout_s, do_not_cache=no_cache, salt=salt.encode()
        )
        seen: list[str] = []
        try:
            done = await corral.actions.run(
                digest,
                skip_cache_lookup=again or no_cache,
                priority=priority,
                on_update=lambda view: seen.append(view.execution),
            )
        except asyncio.CancelledError:
            if seen:
                await finish(_cancel(corral, seen[-1]), within_s=_CANCEL_S)
            raise
        if done.result is not None:
            await _print(corral, done, json=json)
            written = await corral.actions.fetch(done.result.outputs, into)
            if not (quiet or json):
                _tell(done, [str(path) for path in written])
        if json:
            print_json(done)
        return _status(done)

    return with_client(url, work)


def _place(text: str) -> tuple[str, Path]:
    local, colon, path = text.rpartition(":")
    if not colon:
        local, path = text, ""
    source = Path(local)
    if not source.exists() and not source.is_symlink():
        raise InvalidSpec(f"--input: {local} does not exist", field="input")
    return path or ("" if source.is_dir() else source.name), source


async def _print(corral: Corral, done: ExecutionView, *, json: bool) -> None:
    assert done.result is not None
    for digest, stream in ((done.result.stdout, sys.stdout), (done.result.stderr, sys.stderr)):
        async for piece in corral.actions.text(digest):
            (sys.stderr if json else stream).buffer.write(piece)
        stream.flush()


def _tell(done: ExecutionView, written: list[str]) -> None:
    how = "found in the cache" if done.cached else f"run on {done.result.worker}" if done.result else "not run"
    note("", f"action {done.action}: {how}")
    for path in written:
        note("", f"output {path}")


def _status(done: ExecutionView) -> int:
    if done.problem is not None:
        note("error", done.problem.message)
        return _REFUSED
    if done.message:
        note("error", done.message)
    if done.ended == "timed-out":
        return _TIMED_OUT
    return done.result.exit_code if done.result is not None else _REFUSED


async def _cancel(corral: Corral, execution: str) -> None:
    try:
        await corral.actions.cancel(execution)
    except CorralError as error:
        note("error", f"{execution} may still run: {error.message}")


app = verb_app(run, context_settings={"allow_interspersed_args": False})
