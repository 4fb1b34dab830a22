"""Where the agent's binary is."""

from pathlib import Path

from corral.kernel.native import native_program


def agent_path() -> Path:
    """The static agent; ``CORRAL_AGENT`` overrides it. Raises SandboxFailed when absent."""
    return native_program("agent", what="the sandbox agent", variable="CORRAL_AGENT")
