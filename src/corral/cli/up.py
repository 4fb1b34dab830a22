"""`corral up`."""

from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.processes import ConfigFile, DataDir, Set, start


def up(
    data_dir: DataDir = "",
    http: Annotated[str, typer.Option("--http", help="Address of REST, HOST:PORT.", metavar="ADDRESS")] = "",
    grpc: Annotated[str, typer.Option("--grpc", help="Address for workers, HOST:PORT.", metavar="ADDRESS")] = "",
    ready_file: Annotated[str, typer.Option("--ready-file", help="Write the `ready …` line here too.")] = "",
    config: ConfigFile = "",
    overrides: Set = None,
) -> None:
    """Start everything on this machine: a scheduler and a worker, supervised.

    Prints `ready http=… grpc=…` when tasks can run. Ctrl-C stops in order.
    """
    flags = {"data_dir": data_dir, "scheduler.http": http, "scheduler.grpc": grpc}
    start("up", flags, config=config, overrides=overrides, extra={"--ready-file": ready_file})


app = verb_app(up)
