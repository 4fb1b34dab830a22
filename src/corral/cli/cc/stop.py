"""`corral cc stop`."""

import os
import sys

from corral.cli.lazy import verb_app
from corral.compile.control import tell


def stop() -> None:
    """End this user's daemon, when what has run is stored; the next compile starts another."""
    answer = tell(os.environ, "stop")
    sys.stdout.write("no daemon runs\n" if answer is None else f"stopped the daemon, pid {answer['pid']}\n")


app = verb_app(stop)
