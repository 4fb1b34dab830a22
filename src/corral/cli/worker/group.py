"""The table of `corral worker`; without a verb it starts a worker."""

from typing import Annotated

import typer

from corral.cli.lazy import Verb, lazy_app
from corral.cli.processes import ConfigFile, DataDir, Set, start

app = lazy_app(
    {
        "list": Verb("corral.cli.worker.list", "List workers."),
        "drain": Verb("corral.cli.worker.drain", "Let a worker finish what it runs and take nothing new."),
        "undrain": Verb("corral.cli.worker.undrain", "Let a draining worker take work again."),
    },
    "Start a worker; list and drain workers.",
    no_args_is_help=False,
    invoke_without_command=True,
)


@app.callback()
def worker(
    ctx: typer.Context,
    scheduler: Annotated[str, typer.Option("--scheduler", help="Address of the scheduler's gRPC, HOST:PORT.")] = "",
    data_dir: DataDir = "",
    config: ConfigFile = "",
    overrides: Set = None,
) -> None:
    """Start a worker; list and drain workers."""
    if ctx.invoked_subcommand is None:
        start("worker", {"join.scheduler": scheduler, "data_dir": data_dir}, config=config, overrides=overrides)
