"""Where the agent's binary is."""

import os
from pathlib import Path
from typing import Final

import corral
from corral.kernel.errors import SandboxFailed

AGENT_VARIABLE: Final = "CORRAL_AGENT"


def agent_path() -> Path:
    """The static agent binary of this machine's architecture; ``CORRAL_AGENT`` overrides it.

    Raises:
        SandboxFailed: it was never built; the cure says how.
    """
    override = os.environ.get(AGENT_VARIABLE)
    path = Path(override) if override else Path(corral.__file__).parent / "_native" / "corral-agent"
    if not os.access(path, os.X_OK):
        raise SandboxFailed(
            f"the sandbox agent is not at {path}",
            cure=f"build it with `make native` in a checkout, reinstall the wheel, or set {AGENT_VARIABLE}",
        )
    return path
