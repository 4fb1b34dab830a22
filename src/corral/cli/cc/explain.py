"""`corral cc explain`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from corral.cli.cc.local import Local, open_local
from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import at, print_fields, print_json, safe_text
from corral.compile.explain import Record
from corral.compile.journal import Event, read_journal
from corral.compile.model import Outcome
from corral.kernel.errors import NotFound
from corral.kernel.units import format_duration

File = Annotated[str, typer.Argument(metavar="FILE", help="A source, or an object.")]
Headers = Annotated[bool, typer.Option("--files", help="List every file that was read, with its hash.")]

_WORDS = {
    Outcome.LOCAL_HIT: "local hit: answered from this machine's store",
    Outcome.SHARED_HIT: "shared hit: answered from the shared store",
    Outcome.REMOTE_HIT: "remote hit: a worker had it",
    Outcome.REMOTE_RUN: "remote run: a worker compiled it",
    Outcome.LOCAL_RUN: "local run: compiled here",
    Outcome.BYPASS: "bypass: handed to the compiler as it is",
    Outcome.FAILED: "failed: the compiler said no",
}


def explain(file: File, files: Headers = False, json: Json = False) -> None:
    """Say what became of a source the last time, and what had changed."""
    local = open_local()
    record = find_record(local, file)
    path = str(Path(file).absolute()) if record is None else record.source
    events = [event for event in read_journal(local.directory, since_s=0) if event.source == path]
    if record is None and not events:
        raise NotFound(
            f"nothing is known of {file}",
            cure="it was never compiled through `corral cc`, or so long ago that it was forgotten",
        )
    if json:
        print_json({"record": record, "last": events[-1] if events else None})
        return
    print_fields(_fields(path, record, events[-1] if events else None))
    for line in _changes(record):
        sys.stdout.write(f"  {safe_text(line)}\n")
    if files and record is not None:
        for name, content_hash in record.files.items():
            sys.stdout.write(f"  {content_hash[:12]}  {safe_text(name)}\n")


def find_record(local: Local, file: str) -> Record | None:
    """By the source's name, else by the object's."""
    path = str(Path(file).absolute())
    found = local.records.read(path)
    if found is not None:
        return found
    return next((record for record in local.records.all() if record.output == path), None)


def _fields(path: str, record: Record | None, last: Event | None) -> list[tuple[str, str]]:
    fields = [("source", path)]
    if last is not None:
        why = f" ({last.why}{': ' + last.detail if last.detail else ''})" if last.why else ""
        fields += [("last time", at(last.t)), ("outcome", _WORDS[last.outcome] + why)]
        fields.append(("saved", format_duration(last.saved_s) if last.saved_s else ""))
        fields.append(("took", format_duration(last.took_s) if last.took_s else ""))
    if record is not None:
        fields += [
            ("object", record.output),
            ("compiler", record.compiler),
            ("image", record.image),
            ("worker", record.worker),
            ("no worker", record.refused),
            ("audit row", record.execution and f"corral audit list --task {record.execution}"),
            ("project", record.root or "no .corral or .git above it: results hold for this place only"),
            ("key", record.key),
            ("not stored", record.why),
            ("read", f"{len(record.files)} files"),
        ]
    return fields


def _changes(record: Record | None) -> list[str]:
    if record is None or not record.diffs:
        return []
    return [f"at {at(record.at_s)} it was compiled because of:", *(f"  {diff}" for diff in record.diffs)]


app = verb_app(explain)
