"""`corral action show`."""

from typing import Annotated

import typer

from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import at, print_fields, print_json
from corral.cli.running import with_client
from corral.client import Corral
from corral.client.action_model import ActionView
from corral.kernel.digest import Digest
from corral.kernel.units import format_duration


def show(
    digest: Annotated[str, typer.Argument(help="Digest of an action: sha256:<hex>-<size>.", metavar="DIGEST")],
    json: Json = False,
    url: Url = "",
) -> None:
    """Show what a digest is, and its cached result."""
    wanted = Digest.parse(digest)

    async def work(corral: Corral) -> None:
        view = await corral.actions.show(wanted)
        if json:
            print_json(view)
        else:
            print_fields(_fields(view))

    with_client(url, work)


def _fields(view: ActionView) -> list[tuple[str, str]]:
    fields = [("action", view.action)]
    if view.stored:
        fields += [
            ("command", " ".join(view.arguments)),
            ("directory", view.working_directory),
            ("environment", " ".join(f"{name}={value}" for name, value in view.environment)),
            ("platform", " ".join(f"{name}={value}" for name, value in view.platform)),
            ("timeout", "" if view.timeout_s is None else format_duration(view.timeout_s)),
            ("outputs", " ".join(view.outputs)),
            ("inputs", view.input_root),
            ("cached", "no, it says do_not_cache" if view.do_not_cache and view.cached is None else ""),
        ]
    else:
        fields.append(("command", "unknown: only its result was stored"))
    result = view.cached
    if result is None:
        return [*fields, ("result", "none is cached")]
    times = result.times
    ran = format_duration(times.execution_completed_s - times.execution_start_s) if times.execution_start_s else ""
    fields += [
        ("result", f"exit {result.exit_code}, stored {at(view.stored_s)}"),
        ("worker", result.worker),
        ("ran for", ran),
        ("execution", view.execution),
        ("stdout", result.stdout),
        ("stderr", result.stderr),
    ]
    return fields + [("output", f"{each.path}  {each.digest or f'-> {each.target}'}") for each in result.outputs]


app = verb_app(show)
