"""`corral scheduler`."""

from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.processes import ConfigFile, DataDir, Set, start


def scheduler(
    data_dir: DataDir = "",
    http: Annotated[str, typer.Option("--http", help="Address of REST, HOST:PORT.", metavar="ADDRESS")] = "",
    grpc: Annotated[str, typer.Option("--grpc", help="Address for workers, HOST:PORT.", metavar="ADDRESS")] = "",
    database: Annotated[str, typer.Option("--database", help="sqlite:///PATH or postgresql://…")] = "",
    config: ConfigFile = "",
    overrides: Set = None,
) -> None:
    """Start only a scheduler."""
    flags = {
        "data_dir": data_dir,
        "scheduler.http": http,
        "scheduler.grpc": grpc,
        "scheduler.database": database,
    }
    start("scheduler", flags, config=config, overrides=overrides)


app = verb_app(scheduler)
