"""``python -m corral.app.launch ROLE …``: what starts every process of ours.

Some libraries import others when they are there: structlog takes rich, for consoles that these processes never have,
and Litestar takes pydantic, for models that we do not write. Hiding both saves eighteen megabytes. SQLAlchemy's asyncio
package takes its whole object-relational mapper for sessions; we speak Core only, and save another six.
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

ROLES: Final = (
    *("up", "scheduler", "reapi_process", "worker", "daemon"),
    *("config_show", "certificate", "image", "vm"),
)
_HIDDEN: Final = ("rich", "pydantic")
_UNUSED: Final = ("sqlalchemy.ext.asyncio.scoping", "sqlalchemy.ext.asyncio.session")
ENVIRONMENT: Final = {"GRPC_ENABLE_FORK_SUPPORT": "0"}
"""gRPC's handlers for fork, which uvloop starts programs with, crash one child in a hundred; we only fork to exec."""
_FOR_PEOPLE: Final = frozenset({"image", "vm"})  # draws tables, and ends


class _Unused(ModuleType):
    """Stands for a module of which only names are imported, and nothing is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__doc__": f"{self.__name__}.{name}, which is not loaded here."})


def main() -> int:
    """Run the role named first."""
    role = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if role not in ROLES:
        sys.stderr.write(f"corral: error: name one of {', '.join(ROLES)}\n")
        return 2
    for name in _HIDDEN if role not in _FOR_PEOPLE else ():
        sys.modules[name] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    os.environ.update(ENVIRONMENT)
    for name in _UNUSED:
        sys.modules[name] = _Unused(name)
    status: int = import_module(f"corral.app.{role}").main()
    return status


if __name__ == "__main__":
    sys.exit(main())
