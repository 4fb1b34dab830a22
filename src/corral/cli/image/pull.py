"""`corral image pull`."""

from typing import Annotated

import typer

from corral.cli.image.bar import Bar
from corral.cli.image.wanted import Wanted, hand_over
from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import note, print_json
from corral.cli.processes import ConfigFile, DataDir, Set
from corral.images.model import PreparedImage, is_digest
from corral.images.service import Images
from corral.kernel.units import format_size

Pin = Annotated[bool, typer.Option("--pin", help="Keep it: no cleaning evicts it.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def pull(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="registry/name:tag, oci:DIR[:NAME] or docker-archive:FILE[:NAME]")
    ],
    pin: Pin = False,
    quiet: Quiet = False,
    json: Json = False,
    data_dir: DataDir = "",
    config: ConfigFile = "",
    overrides: Set = None,
) -> None:
    """Get an image and unpack it here; every tenant of this worker may then name it by its digest."""
    wanted = Wanted(verb="pull", names=(reference,), pin=pin, json=json, quiet=quiet)
    hand_over(wanted, data_dir=data_dir, config=config, overrides=overrides)


async def carry_out(images: Images, wanted: Wanted) -> int:
    """The half that works."""
    image = await taken(images, wanted.names[0], wanted)
    if wanted.json:
        print_json(image.record)
    else:
        typer.echo(image.digest)
    return 0


async def taken(images: Images, name: str, wanted: Wanted) -> PreparedImage:
    """Pull one, with a bar."""
    if is_digest(name):
        image = await images.keep(name, pin=wanted.pin)
    else:
        place, there = images.place_of(name)
        bar = Bar(name, enabled=not wanted.quiet and not wanted.json)
        try:
            image = await images.take(place, there, name=name, pin=wanted.pin, on_progress=bar.show)
        finally:
            bar.close()
    if not wanted.quiet and not wanted.json:
        note("", f"{name}: {format_size(image.record.size_bytes)} in {image.record.entries} entries")
    return image


app = verb_app(pull)
