"""`python -m bench [NAME...]`: run all benchmarks, or those named, and print one table."""

import sys
from collections.abc import Callable, Sequence

from bench import (
    actions,
    bazel,
    blobs,
    compile_fleet,
    compile_sandboxed,
    fair_share,
    firecracker,
    functions,
    functions_idle,
    functions_large,
    functions_switch,
    idle,
    images,
    leaks,
    logs,
    machines,
    reapi,
    reapi_processes,
    sandboxes,
    staging,
    tasks,
    walls,
)
from bench import compile as compiles
from bench.machine import description
from bench.report import Row, table

BENCHMARKS: dict[str, Callable[[], Sequence[Row]]] = {
    "sandboxes": sandboxes.measure,
    "walls": walls.measure,
    "tasks": tasks.measure,
    "logs": logs.measure,
    "blobs": blobs.measure,
    "actions": actions.measure,
    "staging": staging.measure,
    "fair_share": fair_share.measure,
    "images": images.measure,
    "machines": machines.measure,
    "firecracker": firecracker.measure,
    "functions_idle": functions_idle.measure,
    "functions": functions.measure,
    "functions_switch": functions_switch.measure,
    "functions_large": functions_large.measure,
    "compile": compiles.measure,
    "compile_fleet": compile_fleet.measure,
    "compile_sandboxed": compile_sandboxed.measure,
    "reapi": reapi.measure,
    "reapi_processes": reapi_processes.measure,
    "bazel": bazel.measure,
    "idle": idle.measure,
    "leaks": leaks.measure,
}


def main() -> None:
    """Run what the command line names."""
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f'there is no benchmark "{unknown[0]}"; there are: {", ".join(BENCHMARKS)}')
    print(description(), flush=True)
    rows: list[Row] = []
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows.extend(BENCHMARKS[name]())
    print(table(rows))
    sys.exit(any(row.ok is False for row in rows))


main()
