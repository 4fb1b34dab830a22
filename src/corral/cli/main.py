"""The entry point: the table of nouns and verbs, and the one place where errors become text and exit status.

Exit status: 0 done, 1 failed, 2 the command line or the request is wrong, 3 no scheduler answers; `corral run` exits
with the command's own status.
"""

import os
import sys
import traceback
from typing import Annotated, Any, Final

import msgspec
import typer

from corral import __version__
from corral.cli.lazy import Verb, lazy_app
from corral.cli.output import leave_unread, note
from corral.kernel.errors import CallerError, CorralError, InvalidSpec, SchedulerUnavailable

# httpx imports its own command line when it can, which costs every command of ours a tenth of a second.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

_WORK: Final = "Work"
_OPERATE: Final = "Operate"
VERBS: Final = {
    "run": Verb("corral.cli.run", "Run a command in a sandbox: upload, queue, follow, fetch.", _WORK),
    "task": Verb("corral.cli.task.group", "Submit, list, show, follow, cancel and rerun tasks.", _WORK),
    "action": Verb("corral.cli.action.group", "Run a command as a cached action; show and compare actions.", _WORK),
    "cc": Verb("corral.cli.cc.group", "Compile from a cache: `corral cc gcc -c a.c`; and tell of it.", _WORK),
    "fn": Verb("corral.cli.fn.group", "Deploy, call, switch and scale Wasm functions.", _WORK),
    "why": Verb("corral.cli.why", "Say why a task is pending, was cold, failed or was refused.", _WORK),
    "up": Verb("corral.cli.up", "Start everything on this machine: a scheduler and a worker.", _OPERATE),
    "scheduler": Verb("corral.cli.scheduler", "Start only a scheduler.", _OPERATE),
    "worker": Verb("corral.cli.worker.group", "Start a worker; list and drain workers.", _OPERATE),
    "image": Verb("corral.cli.image.group", "Pull, list, show and remove this worker's images.", _OPERATE),
    "vm": Verb("corral.cli.vm.group", "Make the kernel of this worker's virtual machines.", _OPERATE),
    "doctor": Verb("corral.cli.doctor", "Try every kind of isolation on this machine and say what works.", _OPERATE),
    "audit": Verb("corral.cli.audit.group", "Who ran what.", _OPERATE),
    "token": Verb("corral.cli.token.group", "Make tokens for tenants and workers.", _OPERATE),
    "certificate": Verb("corral.cli.certificate.group", "Make certificates for schedulers, and read them.", _OPERATE),
    "config": Verb("corral.cli.config.group", "Show or check the configuration.", _OPERATE),
}

app = lazy_app(VERBS, "Run other people's code, each piece in an isolated, warm sandbox.", add_completion=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"corral {__version__}\n")
        raise typer.Exit


@app.callback()
def corral(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run other people's code, each piece in an isolated, warm sandbox."""


def main() -> None:
    """Run the command line and leave the process with the right status."""
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        status = leave_unread()
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    tell = _tell_json if "--json" in ours else _tell
    try:
        result: Any = app(arguments, prog_name="corral", standalone_mode=False)
    except CorralError as error:
        return tell(error)
    except (KeyboardInterrupt, EOFError):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the request boundary of the command line: never a traceback)
        # Typer brings its own copy of click, and only its errors know how to show themselves.
        show = getattr(error, "show", None)
        if show is not None and tell is _tell:
            show()
            return int(getattr(error, "exit_code", USAGE))
        if show is not None:
            return tell(CallerError(error.format_message()))  # type: ignore[attr-defined]
        if type(error).__name__ == "Abort":
            return INTERRUPTED
        return tell(
            CorralError(
                f"corral failed: {type(error).__name__}: {error}",
                cure="this is a mistake in Corral; run it again with CORRAL_DEBUG=1 and report what it prints",
            )
        )
    return result if isinstance(result, int) else 0


def _tell(error: CorralError) -> int:
    _debug()
    mistakes = error.mistakes if isinstance(error, InvalidSpec) else ()
    note("error", error.message)
    if len(mistakes) > 1:
        for mistake in mistakes:
            note("", f"  - {mistake}")
    if error.cure:
        note("hint", error.cure)
    return _status_of(error)


def _tell_json(error: CorralError) -> int:
    """The error as REST tells it: one line of JSON on stderr, for whoever asked for JSON."""
    from corral.client.errors import problem_of  # noqa: PLC0415 (imports what most commands do not need)

    _debug()
    sys.stderr.write(msgspec.json.encode(problem_of(error)).decode() + "\n")
    return _status_of(error)


def _status_of(error: CorralError) -> int:
    if isinstance(error, SchedulerUnavailable):
        return UNREACHABLE
    return USAGE if isinstance(error, CallerError) else FAILED


def _debug() -> None:
    if os.environ.get("CORRAL_DEBUG"):
        traceback.print_exc()


if __name__ == "__main__":
    main()
