"""Start one of Corral's own processes in place of this one.

The process is replaced (exec), so that a scheduler or a worker carries nothing of the command line in its memory and
signals reach it directly.
"""

import os
import sys
from collections.abc import Mapping
from typing import Annotated, NoReturn

import typer

ConfigFile = Annotated[str, typer.Option("--config", "-c", help="TOML file; else CORRAL_CONFIG, else ./corral.toml.")]
DataDir = Annotated[str, typer.Option("--data-dir", help="Where everything is kept.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help='Any configuration key, such as "worker.slots=8".'),
]


def start(
    role: str,
    flags: Mapping[str, str],
    *,
    config: str = "",
    overrides: list[str] | None = None,
    extra: Mapping[str, str] | None = None,
) -> NoReturn:
    """Become ``python -m corral.app.launch ROLE``; ``flags`` are configuration keys, "" means "not given"."""
    arguments = [sys.executable, "-m", "corral.app.launch", role]
    if config:
        arguments += ["--config", config]
    for name, value in (extra or {}).items():
        if value:
            arguments += [name, value]
    for key, value in flags.items():
        if value:
            arguments += ["--set", f"{key}={value}"]
    for each in overrides or []:
        arguments += ["--set", each]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)
