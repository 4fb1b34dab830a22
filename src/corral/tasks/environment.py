"""An environment as the ledger keeps it: a name by which two runs can be compared, and from which nothing is read."""

from collections.abc import Mapping
from typing import Final

from corral.kernel.digest import Digest

_OF_THE_RUN: Final = frozenset(("CORRAL_TASK_ID", "CORRAL_RUN_ID"))


def environment_digest(env: Mapping[str, str], secrets: Mapping[str, str]) -> str:
    """The digest of names and values; ``secrets`` (name to value) count by their names, so that none can be guessed.

    The variables that tell a run its own ids do not count: a repetition has the same digest.
    """
    names = {value: name for name, value in secrets.items()}
    lines = sorted(
        f"{variable}=secret:{names[value]}" if value in names else f"{variable}={value}"
        for variable, value in env.items()
        if variable not in _OF_THE_RUN
    )
    return str(Digest.of("\0".join(lines).encode(errors="surrogateescape")))
