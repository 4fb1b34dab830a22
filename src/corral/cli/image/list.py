"""`corral image list`."""

from corral.cli.image.wanted import Wanted, hand_over
from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import at, print_json, print_table
from corral.cli.processes import ConfigFile, DataDir, Set
from corral.images.service import Images
from corral.kernel.units import format_size


def list_(json: Json = False, data_dir: DataDir = "", config: ConfigFile = "", overrides: Set = None) -> None:
    """List the images that are ready on this machine."""
    hand_over(Wanted(verb="list", json=json), data_dir=data_dir, config=config, overrides=overrides)


async def carry_out(images: Images, wanted: Wanted) -> int:
    """The half that works."""
    found = images.list()
    if wanted.json:
        print_json({"images": [image.record for image in found]})
        return 0
    rows = [
        (
            image.digest[:19],
            format_size(image.held_bytes),
            at(image.used_s),
            "pinned" if image.record.pinned else "",
            ", ".join(image.record.references),
        )
        for image in found
    ]
    print_table(("digest", "size", "last use", "", "asked for as"), rows, empty="no image is ready on this machine")
    return 0


app = verb_app(list_)
