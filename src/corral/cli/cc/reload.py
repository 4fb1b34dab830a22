"""`corral cc reload`."""

import os
import sys

from corral.cli.lazy import verb_app
from corral.compile.control import tell
from corral.compile.settings import load_compile_config


def reload() -> None:
    """Make the daemon read its configuration again; it also notices by itself within a second."""
    load_compile_config(os.environ)  # a mistake is told here, not in the daemon's log
    answer = tell(os.environ, "reload")
    sys.stdout.write("no daemon runs\n" if answer is None else f"the daemon, pid {answer['pid']}, reads it again\n")


app = verb_app(reload)
