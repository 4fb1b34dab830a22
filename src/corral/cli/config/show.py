"""`corral config show`."""

from corral.cli.lazy import verb_app
from corral.cli.processes import ConfigFile, DataDir, Set, start


def show(data_dir: DataDir = "", config: ConfigFile = "", overrides: Set = None) -> None:
    """Check the configuration and print all of it, defaults included; secrets are masked."""
    start("config_show", {"data_dir": data_dir}, config=config, overrides=overrides)


app = verb_app(show)
