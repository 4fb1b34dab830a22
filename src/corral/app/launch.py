"""``python -m corral.app.launch ROLE …``: what starts every process of ours.

structlog imports rich when it is there, for consoles that these processes never have; hiding it saves each of them
ten megabytes.
"""

import sys
from importlib import import_module
from typing import Final

ROLES: Final = ("up", "scheduler", "worker", "config_show")


def main() -> int:
    """Run the role named first."""
    role = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if role not in ROLES:
        sys.stderr.write(f"corral: error: name one of {', '.join(ROLES)}\n")
        return 2
    sys.modules["rich"] = None  # type: ignore[assignment]  # None means: importing it fails
    status: int = import_module(f"corral.app.{role}").main()
    return status


if __name__ == "__main__":
    sys.exit(main())
