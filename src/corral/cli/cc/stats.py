"""`corral cc stats`."""

from typing import Annotated, Any

import msgspec
import typer

from corral.cli.cc.local import Local, open_local
from corral.cli.lazy import verb_app
from corral.cli.options import Json
from corral.cli.output import print_fields, print_json
from corral.compile.journal import Statistics, read_journal, sums
from corral.compile.store import StoreReport
from corral.kernel.clock import SystemClock
from corral.kernel.units import format_duration, format_size, parse_duration_s

Since = Annotated[str, typer.Option("--since", help='Only what was asked within this time, such as "10m".')]


def stats(since: Since = "", json: Json = False) -> None:
    """Hits, misses by reason, and the time that was saved."""
    local = open_local()
    since_s = SystemClock().now_s() - parse_duration_s(since, field="--since") if since else 0.0
    found = sums(read_journal(local.directory, since_s=since_s))
    report = local.store.scan()
    if json:
        counted: dict[str, Any] = msgspec.to_builtins(found)
        print_json({**counted, "hit_rate": found.hit_rate, "store": report, "daemon": local.daemon})
        return
    print_fields(_fields(found, report, local))


def _fields(found: Statistics, report: StoreReport, local: Local) -> list[tuple[str, str]]:
    rate = f" ({found.hit_rate:.0%} of what can be cached)" if found.hits + found.runs else ""
    away = {name: found.outcomes.get(name, 0) for name in ("shared-hit", "remote-hit", "remote-run")}
    stores = [f"{away['shared-hit']} in the shared store"] if away["shared-hit"] else []
    stores += [f"{away['remote-hit']} at a worker"] if away["remote-hit"] else []
    hits = f", {' and '.join(stores)}" if stores else ""
    workers = f", {away['remote-run']} by workers" if away["remote-run"] else ""
    runs = ", ".join(f"{count} {why}" for why, count in found.misses.items())
    bypasses = ", ".join(f"{count} {why}" for why, count in found.bypasses.items())
    daemon = local.daemon
    return [
        ("requests", str(found.requests)),
        ("hits", f"{found.hits}{rate}{hits}"),
        ("compiled", f"{found.runs}{workers}" + (f": {runs}" if runs else "")),
        ("failed", str(found.failed) if found.failed else ""),
        ("not for us", bypasses),
        ("time saved", format_duration(found.saved_s)),
        ("time spent", format_duration(found.spent_s)),
        ("store", f"{format_size(report.used_bytes)} of {format_size(local.config.store_bytes)} in {local.directory}"),
        ("daemon", "none runs" if daemon is None else f"pid {daemon['pid']}, up {_up(daemon)}"),
    ]


def _up(daemon: dict[str, object]) -> str:
    return format_duration(float(str(daemon["up_s"])))


app = verb_app(stats)
