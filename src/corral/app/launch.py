"""``python -m corral.app.launch ROLE …``: what starts every process of ours.

Some libraries import others when they are there: structlog takes rich, for consoles that these processes never have,
and Litestar takes pydantic, for models that we do not write. Hiding both saves eighteen megabytes.
"""

import sys
from importlib import import_module
from typing import Final

ROLES: Final = ("up", "scheduler", "worker", "config_show", "image", "daemon")
_HIDDEN: Final = ("rich", "pydantic")
_FOR_PEOPLE: Final = frozenset({"image"})  # draws tables, and ends


def main() -> int:
    """Run the role named first."""
    role = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if role not in ROLES:
        sys.stderr.write(f"corral: error: name one of {', '.join(ROLES)}\n")
        return 2
    for name in _HIDDEN if role not in _FOR_PEOPLE else ():
        sys.modules[name] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    status: int = import_module(f"corral.app.{role}").main()
    return status


if __name__ == "__main__":
    sys.exit(main())
