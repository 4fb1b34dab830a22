"""What every process of ours does first: arguments, configuration, signals; and last: one sentence and a status.

Arguments are few and the same for all: ``--config FILE``, ``--set KEY=VALUE``, and what the process names itself.
"""

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from corral.app.config import load_config
from corral.app.config_sections import Config
from corral.kernel.errors import CallerError, CorralError, DatabaseCorrupt, InvalidSpec, UnsupportedVersion

_PR_SET_PDEATHSIG: Final = 1
FAILED: Final = 1
"""Status of a process that may do better when it is started again."""
REFUSED: Final = 2
"""Status of a process that would end the same way again: somebody must mend what it complains about."""
_PERMANENT: Final = (CallerError, UnsupportedVersion, DatabaseCorrupt)


def read_arguments(role: str, *options: str) -> tuple[Config, argparse.Namespace]:
    """Parse the command line of ``role`` and load its configuration. Raises InvalidSpec."""
    parser = argparse.ArgumentParser(prog=f"corral {role}")
    parser.add_argument("--config", default="")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    for option in options:
        parser.add_argument(option, default="")
    parsed = parser.parse_args()
    if parsed.parent:
        die_with_parent(parsed.parent)
    flags = dict(_override(each) for each in parsed.overrides)
    return load_config(file=Path(parsed.config) if parsed.config else None, flags=flags), parsed


def passed_on(arguments: argparse.Namespace) -> list[str]:
    """What a child must be given to read the same configuration."""
    given = ["--config", arguments.config] if arguments.config else []
    for override in arguments.overrides:
        given += ["--set", override]
    return given


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the supervisor dies, even by SIGKILL; nothing of ours survives it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(FAILED)


def run_process(main: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    """Run ``main`` until it returns a status; SIGTERM and SIGINT set the event that it is given.

    Errors become one sentence on stderr and a status; never a traceback, unless CORRAL_DEBUG is set.
    """

    async def serve() -> int:
        _spare_the_collector()
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        return await main(stopping)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve())
    except (CorralError, BaseExceptionGroup) as error:
        return tell(_first(error))


def _spare_the_collector() -> None:
    """What is there now, mostly modules, stays: no collection looks at it again, and collections come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def tell(error: BaseException) -> int:
    """Print why the process ends; the status for it."""
    if os.environ.get("CORRAL_DEBUG"):
        traceback.print_exception(error)
    if not isinstance(error, CorralError):
        sys.stderr.write(f"corral: error: {type(error).__name__}: {error}\n")
        return FAILED
    sys.stderr.write(f"corral: error: {error.message}\n")
    if isinstance(error, InvalidSpec) and len(error.mistakes) > 1:
        sys.stderr.write("".join(f"  - {mistake}\n" for mistake in error.mistakes))
    if error.cure:
        sys.stderr.write(f"corral: hint: {error.cure}\n")
    return REFUSED if isinstance(error, _PERMANENT) else FAILED


def configure_logging(process: str) -> None:
    """One line per event on stderr: ``key=value`` pairs, stamped with time and process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def _override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidSpec(f'--set "{text}": write KEY=VALUE, for example "worker.slots=8"', field="set")
    return key, value


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
