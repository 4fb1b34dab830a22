"""Commands that are imported when they are used: `corral --version` must not pay for what it does not run.

The table is data: a name, the module that has the command as ``app``, and the line that `--help` shows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


@dataclass(frozen=True, slots=True)
class Verb:
    """One command: where it is, and what `--help` says of it."""

    module: str
    help: str
    panel: str = "Commands"


class LazyGroup(TyperGroup):
    """A group whose commands come from ``verbs``."""

    verbs: Mapping[str, Verb] = {}
    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the table."""
        return list(self.verbs)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The real command; while help is listed, a stand-in that only knows its help line."""
        verb = self.verbs.get(cmd_name)
        if verb is None:
            return None
        if self._listing:
            stand_in = TyperCommand(cmd_name, callback=_nothing, help=verb.help, short_help=verb.help)
            stand_in.rich_help_panel = verb.panel
            return stand_in
        command = get_command(import_module(verb.module).app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Knows all names of the table when it proposes another one."""
        self.commands = {name: _STAND_IN for name in self.verbs}
        try:
            return super().resolve_command(ctx, args)
        finally:
            self.commands = {}

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Lists the commands without importing them."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def _nothing() -> None:
    """What a group does before its verb, and a stand-in never."""


_STAND_IN: Final = TyperCommand("", callback=_nothing)


def lazy_app(verbs: Mapping[str, Verb], help_text: str, **options: Any) -> typer.Typer:
    """A Typer application over a table of verbs."""
    group = type("Group", (LazyGroup,), {"verbs": dict(verbs)})
    return typer.Typer(
        cls=group,
        help=help_text,
        callback=_nothing,
        no_args_is_help=options.pop("no_args_is_help", True),
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        add_completion=options.pop("add_completion", False),
        **options,
    )


def verb_app(function: Callable[..., Any], **options: Any) -> typer.Typer:
    """The one command of a verb's module."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    settings = {"help_option_names": ["-h", "--help"], **options.pop("context_settings", {})}
    app.command(context_settings=settings, **options)(function)
    return app
