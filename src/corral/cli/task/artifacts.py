"""`corral task artifacts`."""

import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json, TaskId, Url
from corral.cli.output import note, print_json, print_table
from corral.cli.running import with_client
from corral.client import ArtifactKind, Corral
from corral.kernel.errors import NotFound
from corral.kernel.units import format_size


def artifacts(
    task_id: TaskId,
    names: Annotated[list[str] | None, typer.Argument(help="Names to fetch; all with --output-dir.")] = None,
    run: Annotated[int, typer.Option("--run", help="Which run; the newest if not given.")] = -1,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="Fetch into this directory.")] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Write one named file to stdout.")] = False,
    json: Json = False,
    url: Url = "",
) -> None:
    """List a task's artifacts, or fetch them."""

    async def work(corral: Corral) -> None:
        found = await corral.artifacts.list(task_id, run=run if run >= 0 else None)
        chosen = [each for each in found if not names or each.artifact.name in names]
        if names and (absent := set(names) - {each.artifact.name for each in chosen}):
            raise NotFound(f"{task_id} has no artifact {', '.join(sorted(absent))}")
        if stdout and names:
            for each in chosen:
                async with aclosing(corral.artifacts.read(task_id, each.run, each.artifact.name)) as pieces:
                    async for piece in pieces:
                        sys.stdout.buffer.write(piece)
            return
        if output_dir is not None or names:
            for each in chosen:
                if each.artifact.kind is ArtifactKind.ERROR:
                    note("warning", f"{each.artifact.name}: {each.artifact.message}")
                    continue
                note("", str(await corral.artifacts.fetch(task_id, each, output_dir or Path())))
            return
        if json:
            print_json(chosen)
            return
        rows = [
            (
                each.artifact.name,
                each.artifact.kind.value,
                format_size(each.artifact.size_bytes),
                each.artifact.message or each.artifact.digest,
            )
            for each in chosen
        ]
        print_table(("NAME", "KIND", "SIZE", "DIGEST"), rows, empty="no artifacts", cut="DIGEST")

    with_client(url, work)


app = verb_app(artifacts)
