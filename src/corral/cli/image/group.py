"""The table of `corral image`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app(
    {
        "pull": Verb("corral.cli.image.pull", "Get an image from a registry, a layout or an archive, and unpack it."),
        "prepare": Verb("corral.cli.image.prepare", "See to it that the pinned images, or these, are ready."),
        "list": Verb("corral.cli.image.list", "List the images that are ready on this machine."),
        "show": Verb("corral.cli.image.show", "Show one image."),
        "rm": Verb("corral.cli.image.rm", "Remove an image that nothing uses."),
    },
    "Pull, list, show and remove the images of this machine's worker.",
)
