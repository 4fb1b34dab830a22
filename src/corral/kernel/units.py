"""Sizes and durations as people write them: ``"2GB"``, ``"512KiB"``, ``"10m"``, ``"1h30m"``, ``"250ms"``.

Sizes: decimal suffixes (KB, MB, GB, TB) are powers of 1000, binary ones (KiB, MiB, GiB, TiB) powers of 1024;
a bare number is bytes. Durations: ms, s, m, h, d, w, in falling order, each at most once; a bare number is
seconds. Negative, infinite and empty values are mistakes of the caller.
"""

import math
import re
from decimal import Decimal
from typing import Final

from corral.kernel.errors import InvalidSpec

_SIZE: Final = re.compile(r"(?P<number>[0-9]{1,20}(?:\.[0-9]{1,20})?)\s*(?P<unit>[kmgtp]i?b?|b?)", re.IGNORECASE)
_SIZE_UNITS: Final = {
    **{unit: 1000**power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))},
    **{f"{unit}i": 1024**power for power, unit in enumerate(("", "k", "m", "g", "t", "p")) if unit},
}
_SIZE_MAX: Final = 2**63 - 1
_TEXT_MAX: Final = 100
_DURATION_PART: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*(ms|[wdhms])\s*")
_DURATION_UNITS: Final = {"w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION_MAX_S: Final = 100 * 365 * 86_400.0


def parse_size(value: str | int, *, field: str = "size") -> int:
    """Bytes in ``value``. Raises InvalidSpec naming ``field`` when it is not a size."""
    text = _short(value)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidSpec(f'{field}: "{text}" is not a size; write for example "512MiB" or "2GB"', field=field)
    unit = _SIZE_UNITS[match["unit"].lower().removesuffix("b")]
    size = int(Decimal(match["number"]) * unit)
    if size > _SIZE_MAX:
        raise InvalidSpec(f'{field}: "{text}" is more than any machine has; the largest size is 8 EiB', field=field)
    return size


def parse_duration_s(value: str | float, *, field: str = "duration") -> float:
    """Seconds in ``value``. Raises InvalidSpec naming ``field`` when it is not a duration."""
    text = _short(value).lower()
    seconds = _bare_seconds(text)
    if seconds is None:
        seconds = _seconds_in_parts(text)
    if seconds is None:
        raise InvalidSpec(
            f'{field}: "{text}" is not a duration; write for example "90s", "10m" or "1h30m"', field=field
        )
    if not 0 <= seconds <= _DURATION_MAX_S:
        raise InvalidSpec(f'{field}: "{text}" is out of range; a duration is between 0 and 100 years', field=field)
    return seconds


def _short(value: str | float) -> str:
    """The text, cut: a caller may send megabytes of it, and hears it back."""
    try:
        text = str(value).strip()
    except ValueError:  # an integer of more than 4300 digits
        return "a number beyond all bounds"
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…"


def _bare_seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else -1.0


def _seconds_in_parts(text: str) -> float | None:
    """The sum of parts such as ``1h 30m``, units falling; None when ``text`` is anything else."""
    seconds, position, units = 0.0, 0, list(_DURATION_UNITS)
    while (part := _DURATION_PART.match(text, position)) is not None and part[2] in units:
        seconds += float(part[1]) * _DURATION_UNITS[part[2]]
        position, units = part.end(), units[units.index(part[2]) + 1 :]
    return seconds if position == len(text) > 0 else None


def format_size(size_bytes: int) -> str:
    """``1536`` → ``"1.5 KiB"``, and ``64_000_000`` → ``"64 MB"``, as whoever chose it wrote it; for people."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB")):
        if size_bytes >= 1000**power and size_bytes % 1000**power == 0 and size_bytes % 1024**power != 0:
            return f"{size_bytes // 1000**power} {unit}"
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """``0.0123`` → ``"12 ms"``, ``90`` → ``"1m30s"``; for people."""
    if seconds == 0:
        return "0 s"
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{left}s"
