"""`corral image prepare`."""

from typing import Annotated

import typer

from corral.cli.image.pull import Quiet, taken
from corral.cli.image.wanted import Wanted, hand_over
from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import print_json
from corral.cli.processes import ConfigFile, DataDir, Set
from corral.images.model import is_digest
from corral.images.service import Images
from corral.kernel.errors import InvalidSpec


def prepare(
    references: Annotated[list[str] | None, typer.Argument(metavar="[REFERENCE]...")] = None,
    quiet: Quiet = False,
    json: Json = False,
    data_dir: DataDir = "",
    config: ConfigFile = "",
    overrides: Set = None,
) -> None:
    """See to it that these images are ready and stay; without any, those of images.pinned."""
    wanted = Wanted(verb="prepare", names=tuple(references or ()), pin=True, json=json, quiet=quiet)
    hand_over(wanted, data_dir=data_dir, config=config, overrides=overrides)


async def carry_out(images: Images, wanted: Wanted) -> int:
    """The half that works."""
    names = wanted.names or tuple(name for name in images.pinned if not is_digest(name))
    if not names:
        raise InvalidSpec("no image is named, and images.pinned names none", cure="corral image prepare REFERENCE")
    records = [(await taken(images, name, wanted)).record for name in names]
    if wanted.json:
        print_json(records)
    else:
        for record in records:
            typer.echo(record.digest)
    return 0


app = verb_app(prepare)
