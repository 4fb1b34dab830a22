"""The console command. A compile goes to the static wrapper before anything else is imported, even of Python's own.

``corral-cc gcc`` (on PATH beside ``corral``) and links named as compilers reach the wrapper without any Python.
"""

import os
import sys

WRAPPER = os.path.join(os.path.dirname(__file__), "_native", "corral-cc")
CC_VERBS = frozenset({"stats", "explain", "inspect", "clean", "stop", "reload", "install-links"})
_COMPILER_AT = 2


def is_compile(arguments: list[str]) -> bool:
    """Tell whether ``corral`` with these arguments is a compile: ``cc`` and then no verb and no option."""
    if len(arguments) < _COMPILER_AT or arguments[0] != "cc":
        return False
    return arguments[1] not in CC_VERBS and not arguments[1].startswith("-")


def main() -> None:
    """Become the wrapper, or run the command line."""
    arguments = sys.argv[1:]
    if is_compile(arguments):
        os.environ.setdefault("CORRAL_CC_PYTHON", sys.executable)
        try:
            os.execv(WRAPPER, ["corral-cc", *arguments[1:]])
        except OSError:
            # Not built here: the compiler itself does, without a cache.
            os.environ.pop("CORRAL_CC_PYTHON", None)
            os.execvp(arguments[1], arguments[1:])
    from corral.cli.main import main as command_line  # noqa: PLC0415 (a compile must not pay for it)

    command_line()


if __name__ == "__main__":
    main()
