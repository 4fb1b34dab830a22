"""`corral fn show`."""

from corral.cli.fn.words import Name, ready, split_text
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import at, print_fields, print_json, print_table
from corral.cli.running import with_client
from corral.client import Corral, FunctionView, RevisionView
from corral.kernel.units import format_duration, format_size


def show(name: Name, json: Json = False, url: Url = "") -> None:
    """Show one function with its revisions and instances."""

    async def work(corral: Corral) -> None:
        function = await corral.functions.get(name)
        if json:
            print_json(function)
            return
        print_fields(_fields(function))
        print_table(
            ("REVISION", "PART", "PHASE", "KIND", "INSTANCES", "REQUESTS", "FAILED", "P50", "P99", "CPU", "TROUBLE"),
            [_row(each) for each in function.revisions],
            empty="no revisions",
            optional=("KIND", "CPU"),
        )
        rows = [row for each in function.revisions for row in _instances(each)]
        if rows:
            print_table(
                ("INSTANCE", "REVISION", "WORKER", "PHASE", "STARTED", "REQUESTS", "NOW", "MEMORY"),
                rows,
                empty="",
                optional=("STARTED", "WORKER"),
            )

    with_client(url, work)


def _fields(function: FunctionView) -> list[tuple[str, str]]:
    return [
        ("function", function.name),
        ("default", split_text(function.split)),
        ("without default", function.why_none),
        ("on break", function.on_break.value),
        ("version", str(function.version)),
        ("changed", at(function.changed_s)),
        *(("url", each) for each in function.urls),
        ("no url", function.why_no_url),
    ]


def _row(revision: RevisionView) -> tuple[str, ...]:
    stats = revision.stats
    return (
        revision.name,
        f"{revision.percent} %",
        revision.phase.value,
        revision.spec.kind.value,
        ready(revision),
        str(stats.requests),
        str(stats.errors + stats.traps + stats.timeouts),
        format_duration(stats.latency_p50_s) if stats.latency_p50_s else "",
        format_duration(stats.latency_p99_s) if stats.latency_p99_s else "",
        format_duration(stats.cpu_s) if stats.cpu_s else "",
        revision.why or revision.trouble,
    )


def _instances(revision: RevisionView) -> list[tuple[str, ...]]:
    return [
        (
            each.id,
            revision.name,
            each.worker,
            each.phase.value,
            at(each.started_s) if each.started_s else "",
            str(each.stats.requests),
            str(each.stats.in_flight),
            format_size(each.stats.memory_bytes) if each.stats.memory_bytes else "",
        )
        for each in revision.instances
    ]


app = verb_app(show)
