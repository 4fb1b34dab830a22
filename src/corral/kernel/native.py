"""The native programs that Corral brings: where they are, and what to do when they were never built."""

import os
from pathlib import Path

import corral
from corral.kernel.errors import SandboxFailed


def native_program(name: str, *, what: str, variable: str) -> Path:
    """The program ``corral-<name>`` for this machine; the environment's ``variable`` overrides it.

    Raises:
        SandboxFailed: ``what`` is not there; the cure says how to get it.
    """
    override = os.environ.get(variable)
    path = Path(override) if override else Path(corral.__file__).parent / "_native" / f"corral-{name}"
    if not os.access(path, os.X_OK):
        raise SandboxFailed(
            f"{what} is not at {path}",
            cure=f"build it with `make native` in a checkout, reinstall the wheel, or set {variable}",
        )
    return path
