"""`corral image prepare`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from corral.cli.image.pull import Quiet, taken
from corral.cli.image.wanted import Wanted, hand_over
from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import note, print_json
from corral.cli.processes import ConfigFile, DataDir, Set
from corral.images.model import is_digest
from corral.images.service import Images
from corral.kernel.errors import InvalidSpec
from corral.kernel.units import format_size
from corral.sandboxes.guest.root_image import RootImages


class Use(StrEnum):
    """What stands on the image: a directory for containers, or also a disk for virtual machines."""

    CONTAINERS = "containers"
    MACHINES = "vm"


For = Annotated[Use, typer.Option("--for", help="Also make the disk that virtual machines boot from (vm).")]


def prepare(
    references: Annotated[list[str] | None, typer.Argument(metavar="[REFERENCE]...")] = None,
    use: For = Use.CONTAINERS,
    quiet: Quiet = False,
    json: Json = False,
    data_dir: DataDir = "",
    config: ConfigFile = "",
    overrides: Set = None,
) -> None:
    """See to it that these images are ready and stay; without any, those of images.pinned."""
    machines = use is Use.MACHINES
    wanted = Wanted(verb="prepare", names=tuple(references or ()), pin=True, machines=machines, json=json, quiet=quiet)
    hand_over(wanted, data_dir=data_dir, config=config, overrides=overrides)


async def carry_out(images: Images, wanted: Wanted) -> int:
    """The half that works."""
    names = wanted.names or tuple(name for name in images.pinned if not is_digest(name))
    if not names:
        raise InvalidSpec("no image is named, and images.pinned names none", cure="corral image prepare REFERENCE")
    records = []
    for name in names:
        image = await taken(images, name, wanted)
        if wanted.machines:
            await _make_disk(name, image.root, quiet=wanted.quiet or wanted.json)
        records.append(image.record)
    if wanted.json:
        print_json(records)
    else:
        for record in records:
            typer.echo(record.digest)
    return 0


async def _make_disk(name: str, root: str, *, quiet: bool) -> None:
    def tell(what: str) -> None:
        if not quiet:
            note("", f"{name}: {what}")

    disk = await RootImages(Path(root).parent).image(root, on_start=lambda: tell("making the disk of its machines"))
    tell(f"{format_size(disk.stat().st_size)} to boot from")


app = verb_app(prepare)
