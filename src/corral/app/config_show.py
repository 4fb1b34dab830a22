"""``corral.app.launch config_show``: the whole configuration, checked, as TOML."""

import sys

from corral.app.config import config_as_toml
from corral.app.start import read_arguments, tell
from corral.kernel.errors import CorralError


def main() -> int:
    """Print it; status 2 with all mistakes when it is wrong."""
    try:
        config, _ = read_arguments("config show")
    except CorralError as error:
        return tell(error)
    sys.stdout.write(config_as_toml(config))
    return 0
