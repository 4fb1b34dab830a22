"""``corral.app.launch config_show``: the whole configuration, checked, as TOML or (``--shape json``) as JSON."""

import sys

import msgspec

from corral.app.config import config_as_toml, config_tree
from corral.app.start import read_arguments, tell
from corral.kernel.errors import CorralError


def main() -> int:
    """Print it; status 2 with all mistakes when it is wrong."""
    try:
        config, arguments = read_arguments("config show", "--shape")
    except CorralError as error:
        return tell(error)
    if arguments.shape == "json":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(config_tree(config))).decode() + "\n")
    else:
        sys.stdout.write(config_as_toml(config))
    return 0
