"""`corral image rm`."""

from typing import Annotated

import typer

from corral.cli.image.wanted import Wanted, hand_over
from corral.cli.lazy import verb_app
from corral.cli.output import note
from corral.cli.processes import ConfigFile, DataDir, Set
from corral.images.service import Images


def rm(
    image: Annotated[list[str], typer.Argument(metavar="IMAGE", help="References, digests or beginnings of them.")],
    data_dir: DataDir = "",
    config: ConfigFile = "",
    overrides: Set = None,
) -> None:
    """Remove images that nothing uses."""
    hand_over(Wanted(verb="rm", names=tuple(image)), data_dir=data_dir, config=config, overrides=overrides)


async def carry_out(images: Images, wanted: Wanted) -> int:
    """The half that works."""
    for name in wanted.names:
        digest = images.find(name).digest
        await images.remove(digest)
        note("", f"removed {digest}")
    return 0


app = verb_app(rm)
