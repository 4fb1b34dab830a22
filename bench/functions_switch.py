"""Deploys, switches, splits and rollbacks of a function under load: no request may fail, none may go astray."""

import asyncio
import os
from collections.abc import Sequence

from bench.report import Row, milliseconds, p50
from bench.server import running
from corral.client import Corral
from corral.testing.function_load import Record, changed_under_load

_CHANGES = int(os.environ.get("CORRAL_BENCH_CHANGES", "1000"))
_CALLERS = 4


def measure() -> Sequence[Row]:
    """One function, four callers, a thousand changes (``CORRAL_BENCH_CHANGES``)."""
    with running("engine.front.listen=127.0.0.1:0") as server:
        record = asyncio.run(_changed(server.url))
    failed, astray = len(record.failed()), len(record.misrouted())
    took = [turn.end_s - turn.begin_s for turn in record.turns]
    return [
        Row(
            what=f"functions: {len(record.turns)} deploys, switches, splits and rollbacks under load, "
            f"{milliseconds(p50(took))} each in the median; failed + misrouted of {len(record.answers)} requests",
            ours=f"{failed} + {astray}",
            against="",
            ratio="",
            bound="0 + 0",
            ok=failed + astray == 0,
        )
    ]


async def _changed(url: str) -> Record:
    async with Corral(url) as corral:
        return await changed_under_load(corral, "switched", changes=_CHANGES, callers=_CALLERS, seed=1)
