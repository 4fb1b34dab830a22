"""The processor of this machine, for flags such as ``-march=native`` that mean another thing on every machine."""

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
