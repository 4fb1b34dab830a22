"""Writes ``docs/reference/cli.md`` from the commands themselves (``python -m corral.cli.docs``)."""

from collections.abc import Iterable
from typing import Any, Final

import typer
from typer.main import get_command

from corral.cli.main import app

_HEAD: Final = """\
# The command line

This page is generated from the code (`python -m corral.cli.docs > docs/reference/cli.md`).

- **Exit status**: 0 done, 1 failed, 2 the command line or the request is wrong, 3 no scheduler answers, 130 Ctrl-C.
  `corral run` and `corral action run` leave with the command's own status.
- **Output**: stdout holds what was asked for and nothing else; on a terminal tables, in a pipe lines with tabs, with
  `--json` one JSON document. Mistakes go to stderr: a sentence and its cure, with `--json` one line of JSON as REST
  answers it (`code`, `detail`, `cause`, `cure`, `mistakes`, `retryable`).
- **Environment**: `CORRAL_URL` and `CORRAL_TOKEN` say which scheduler, and who you are; `CORRAL_FINGERPRINT` or
  `CORRAL_CA_FILE` how an `https://` scheduler's certificate is checked; `NO_COLOR` is respected; `CORRAL_DEBUG=1` shows
  the trace of a failure. `CORRAL_CONFIG` and `CORRAL_<SECTION>__<KEY>` configure what `up`, `scheduler`, `worker`,
  `image` and `vm` start ([configuration](configuration.md)).
- **Completion**: `corral --install-completion`, for bash, zsh and fish.

Every command knows `--help`.
"""


def reference() -> str:
    """The whole page."""
    root: Any = get_command(app)
    lines = [_HEAD]
    _write(lines, root, typer.Context(root, info_name="corral"), "corral", 2)
    return "\n".join(lines).rstrip() + "\n"


def _write(lines: list[str], command: Any, context: Any, path: str, level: int) -> None:
    names = command.list_commands(context) if hasattr(command, "list_commands") else ()
    below = [(name, command.get_command(context, name)) for name in names]
    if path != "corral":
        lines += [f"{'#' * level} `{path}`\n", _prose(command.help), ""]
        lines += ["```console", f"$ {path} {' '.join(command.collect_usage_pieces(context))}", "```", ""]
        level += 1
    if options := list(_options(command, context)):
        lines += ["| | |\n|---|---|", *(f"| `{name}` | {text} |" for name, text in options), ""]
    for name, each in below:
        _write(lines, each, typer.Context(each, info_name=name, parent=context), f"{path} {name}", level)


def _options(command: Any, context: Any) -> Iterable[tuple[str, str]]:
    for each in command.get_params(context):
        record = each.get_help_record(context)
        if record is not None and "--help" not in each.opts:
            name, text = record
            yield name.replace("|", "\\|"), " ".join(text.replace("|", "\\|").split())


def _prose(text: str | None) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201 (this is what it is for)
