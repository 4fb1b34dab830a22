"""What of this machine gets into objects: its processor, for flags such as ``-march=native``, and its date."""

import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

_TELLING: Final = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")


@cache
def processor() -> str:
    """What /proc/cpuinfo says of the first processor, as one line; "" where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    first = text.split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    return "|".join(f"{name.strip()}={value.strip()}" for name, _, value in lines if name.strip() in _TELLING)


def local_date(now_s: float, zone: str) -> str:
    """Today as ``__DATE__`` has it, ISO 8601, for a compiler with ``TZ=zone``; "" in another zone than our own."""
    if zone != os.environ.get("TZ", ""):
        return ""
    return datetime.fromtimestamp(now_s, tz=UTC).astimezone().date().isoformat()
