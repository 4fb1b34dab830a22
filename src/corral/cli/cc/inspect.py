"""`corral cc inspect`."""

import re
import sys
from typing import Annotated, Any

import typer

from corral.cli.cc.explain import find_record
from corral.cli.cc.local import Local, open_local
from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import print_fields, print_json, safe_text
from corral.compile.entries import ResultEntry
from corral.kernel.clock import SystemClock
from corral.kernel.errors import NotFound
from corral.kernel.units import format_duration, format_size

_KEY = re.compile(r"[0-9a-f]{64}")
What = Annotated[str, typer.Argument(metavar="KEY|FILE", help="A result's key, a source, or an object.")]


def inspect(what: What, json: Json = False) -> None:
    """Show what is stored for a source, an object or a key."""
    local = open_local()
    key, request_key = _keys(local, what)
    entry = local.store.result(key, now_s=SystemClock().now_s()) if key else None
    if entry is None:
        raise NotFound(f"no stored result for {what}", cure="`corral cc explain` says why it was not stored")
    sets = local.store.sets(request_key) if request_key else ()
    if json:
        print_json({"key": key, "request_key": request_key, "result": _facts(entry), "sets": [one for one, _ in sets]})
        return
    result = entry.result
    fields = [("key", key), ("request", request_key), ("compiled in", format_duration(result.duration_s))]
    fields += [("by", result.origin), ("audit row", result.execution)]
    fields += [(file.role, f"{format_size(file.size_bytes)}  {file.digest}") for file in result.files]
    fields += [("stderr", f"{len(result.stderr)} bytes" if result.stderr else "")]
    print_fields(fields)
    for included, result_key in sets:
        sys.stdout.write(f"include set of {len(included.files)} files -> {result_key}\n")
        for path, content_hash in included.files:
            sys.stdout.write(f"  {content_hash[:12]}  {safe_text(path)}\n")


def _keys(local: Local, what: str) -> tuple[str, str]:
    if _KEY.fullmatch(what):
        return what, ""
    record = find_record(local, what)
    return ("", "") if record is None else (record.key, record.request_key)


def _facts(entry: ResultEntry) -> dict[str, Any]:
    result = entry.result
    return {
        "files": list(result.files),
        "stdout": result.stdout.decode(errors="replace"),
        "stderr": result.stderr.decode(errors="replace"),
        "duration_s": result.duration_s,
        "origin": result.origin,
    }


app = verb_app(inspect)
