"""`corral image show`."""

from typing import Annotated

import typer

from corral.cli.image.wanted import Wanted, hand_over
from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import at, print_fields, print_json
from corral.cli.processes import ConfigFile, DataDir, Set
from corral.images.service import Images
from corral.kernel.units import format_size

Name = Annotated[str, typer.Argument(metavar="IMAGE", help="A reference, a digest, or the beginning of one.")]


def show(
    image: Name, json: Json = False, data_dir: DataDir = "", config: ConfigFile = "", overrides: Set = None
) -> None:
    """Show one image."""
    hand_over(Wanted(verb="show", names=(image,), json=json), data_dir=data_dir, config=config, overrides=overrides)


async def carry_out(images: Images, wanted: Wanted) -> int:
    """The half that works."""
    image = images.find(wanted.names[0])
    record = image.record
    if wanted.json:
        print_json(record)
        return 0
    print_fields(
        [
            ("digest", record.digest),
            ("platform", str(record.platform)),
            ("size", f"{format_size(record.size_bytes)} in {record.entries} entries; layers: {record.layers}"),
            ("root", image.root),
            ("prepared", at(record.prepared_s)),
            ("last use", at(image.used_s)),
            ("asked for as", ", ".join(record.references)),
            ("kept", "pinned" if record.pinned else ""),
            ("shared", "with every tenant, by digest" if record.shared else ""),
            ("environment", " ".join(record.settings.env)),
            ("entrypoint", " ".join(record.settings.entrypoint)),
            ("command", " ".join(record.settings.command)),
        ]
    )
    return 0


app = verb_app(show)
