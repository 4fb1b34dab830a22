"""What a figure was measured on, in one line."""

import os
import platform
from pathlib import Path


def description() -> str:
    """Processor, cores, memory, kernel and Python of this machine, and how busy it is."""
    models = {
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    load = os.getloadavg()[0]
    return (
        f"{', '.join(sorted(models)) or platform.machine()}, {os.cpu_count()} cores, {memory_kib / 2**20:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, load {load:.1f} at the start"
    )
