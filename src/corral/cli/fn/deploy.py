"""`corral fn deploy`."""

from pathlib import Path
from typing import Annotated

import typer

from corral.cli.fn.words import IfVersion, split_text
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import note, print_json
from corral.cli.running import with_client
from corral.cli.spec import environment_of
from corral.cli.status import Status, progress_text
from corral.client import Corral, DeployAnswer, DeployRequest, Kind, Limits, OnBreak, Preopen, Scale
from corral.kernel.digest import Digest
from corral.kernel.errors import InvalidSpec
from corral.kernel.units import format_duration, parse_duration_s, parse_size

_REVISION_CHARACTERS = 12
_URLS = ("http://", "https://", "oci://")


def deploy(
    name: Annotated[str, typer.Argument(help="Name of the function.", metavar="FUNCTION")],
    program: Annotated[
        str,
        typer.Argument(
            help="A .wasm file, a digest, oci://REGISTRY/NAME:TAG, or a URL with --digest.", metavar="PROGRAM"
        ),
    ],
    revision: Annotated[
        str, typer.Option("--revision", "-r", help="Name of the revision; from the program's hash if not given.")
    ] = "",
    digest: Annotated[str, typer.Option("--digest", help="What the program behind a URL must be.")] = "",
    kind: Annotated[Kind | None, typer.Option("--kind", help="How it is entered; found out if not given.")] = None,
    default: Annotated[
        bool | None,
        typer.Option("--default/--no-default", help="Make it the default; if not given, only for a new function."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="K=V", help="Environment variable.")] = None,
    args: Annotated[list[str] | None, typer.Option("--arg", help="Argument of the program.")] = None,
    mount: Annotated[
        list[str] | None,
        typer.Option("--mount", metavar="DIR:GUEST", help="Upload DIR; the program reads it at GUEST."),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="URL", help="http(s)://host[:port] that it may call.")
    ] = None,
    handler: Annotated[
        str, typer.Option("--handler", help="Of a reactor: the export that handles requests.")
    ] = "handle",
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help='Of one request, such as "64MiB".')] = "",
    cpu: Annotated[str, typer.Option("--cpu", metavar="DURATION", help="CPU time of one request.")] = "",
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="Time of one request.")] = "",
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="Requests at once in an instance.")] = None,
    least: Annotated[int, typer.Option("--min", help="Instances at least, while it gets requests.")] = 0,
    most: Annotated[int, typer.Option("--max", help="Instances at most.")] = 8,
    target: Annotated[float, typer.Option("--target", help="Requests in flight that one instance should have.")] = 8.0,
    idle: Annotated[str, typer.Option("--idle", metavar="DURATION", help="How long unneeded instances stay.")] = "60s",
    on_break: Annotated[
        OnBreak | None, typer.Option("--on-break", help="What follows when the default breaks: nothing or previous.")
    ] = None,
    if_version: IfVersion = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json: Json = False,
    url: Url = "",
) -> None:
    """Deploy a .wasm as a revision of a function: upload, check, compile, remember.

    The first revision of a new function becomes its default. The same content again changes nothing.
    """
    chosen: dict[str, float | int] = {}
    if memory:
        chosen["memory_bytes"] = parse_size(memory, field="--memory")
    if cpu:
        chosen["cpu_s"] = parse_duration_s(cpu, field="--cpu")
    if timeout:
        chosen["wall_s"] = parse_duration_s(timeout, field="--timeout")
    if concurrency is not None:
        chosen["concurrency"] = concurrency
    limits = Limits(**chosen)  # type: ignore[arg-type]
    scale = Scale(min=least, max=most, target=target, idle_s=parse_duration_s(idle, field="--idle"))
    status = Status(enabled=not quiet and not json)

    async def work(corral: Corral) -> DeployAnswer:
        try:
            module = await _module(corral, program, digest, status)
            request = DeployRequest(
                module="" if module is None else str(module),
                url=program if program.startswith(_URLS) else "",
                kind=kind,
                limits=limits,
                args=tuple(args or ()),
                env=environment_of(env or []),
                preopens=tuple([await _preopen(corral, each, status) for each in mount or ()]),
                outbound=tuple(allow or ()),
                handler=handler,
                scale=scale,
                default=default,
                on_break=on_break,
            )
            status.told(f"compiling {name}")
            if not revision and module is None:
                raise InvalidSpec("--revision: an artifact without --digest needs a name for its revision")
            chosen_revision = revision or (module.hash[:_REVISION_CHARACTERS] if module else "")
            return await corral.functions.deploy(name, chosen_revision, request, if_version=if_version)
        finally:
            status.close()

    answer = with_client(url, work)
    if json:
        print_json(answer)
    else:
        _tell(answer, revision)


def _tell(answer: DeployAnswer, revision: str) -> None:
    function = answer.function
    if not answer.changed:
        note("", f"{function.name}: deployed already, nothing changed (default: {split_text(function.split)})")
    else:
        deployed = revision or function.revisions[-1].name
        took = "from the compile cache" if answer.cached else f"compiled in {format_duration(answer.compile_s)}"
        note("", f"{function.name}@{deployed} deployed, {took} (default: {split_text(function.split)})")
    for each in function.urls:
        note("", f"call it at {each}")
    if not function.urls:
        note("", f"it cannot be called yet: {function.why_no_url}")


async def _module(corral: Corral, program: str, digest: str, status: Status) -> Digest | None:
    """Its digest; None for an artifact that nobody knows yet."""
    if program.startswith(_URLS):
        if not digest and program.startswith("oci://"):
            return None
        if not digest:
            raise InvalidSpec("--digest: a program behind a URL needs its digest, sha256:HEX-SIZE or b3:HEX-SIZE")
        return Digest.parse(digest)
    if program.startswith(("b3:", "sha256:")):
        return Digest.parse(program)
    return await corral.uploads.file(Path(program), on_progress=lambda p: status.show(progress_text(p)))


async def _preopen(corral: Corral, text: str, status: Status) -> Preopen:
    local, colon, guest = text.rpartition(":")
    if not colon or not local:
        raise InvalidSpec(f'--mount: "{text}" is not DIR:GUEST, such as "assets:/assets"', field="mount")
    tree = await corral.uploads.directory(Path(local), on_progress=lambda p: status.show(progress_text(p)))
    return Preopen(guest=guest, tree=str(tree))


app = verb_app(deploy)
