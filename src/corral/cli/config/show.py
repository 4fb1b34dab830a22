"""`corral config show`."""

from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.processes import ConfigFile, DataDir, Set, start


def show(data_dir: DataDir = "", config: ConfigFile = "", overrides: Set = None, json: Json = False) -> None:
    """Check the configuration and print all of it, defaults included, as TOML; secrets are masked."""
    shape = {"--shape": "json"} if json else {}
    start("config_show", {"data_dir": data_dir}, config=config, overrides=overrides, extra=shape)


app = verb_app(show)
