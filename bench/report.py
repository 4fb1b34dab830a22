"""A row of the table: what was measured, the bare thing or peer beside it, their ratio, and the bound."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``ok`` None means that there is no bound."""

    what: str
    ours: str
    against: str
    ratio: str
    bound: str
    ok: bool | None


def milliseconds(seconds: float) -> str:
    """``0.00123`` → ``"1.23 ms"``."""
    return f"{seconds * 1000:.2f} ms"


def at_most(what: str, ours_s: float, bare: str, bare_s: float, *, times: float = 1.0, plus_s: float = 0.0) -> Row:
    """A duration that must be at most ``times`` × the bare one plus ``plus_s``."""
    bound = f"≤ {times:g} ×" + (f" + {plus_s * 1000:g} ms" if plus_s else "")
    return Row(
        what=what,
        ours=milliseconds(ours_s),
        against=f"{bare} {milliseconds(bare_s)}",
        ratio=f"{ours_s / bare_s:.2f} ×",
        bound=bound,
        ok=ours_s <= bare_s * times + plus_s,
    )


def bounded(what: str, seconds: float, bound_s: float) -> Row:
    """A duration that must be under a bound of its own."""
    bound = f"< {bound_s * 1000:g} ms"
    return Row(what=what, ours=milliseconds(seconds), against="", ratio="", bound=bound, ok=seconds < bound_s)


def beside(what: str, ours_s: float, bare: str, bare_s: float) -> Row:
    """A duration beside another, for the reader."""
    against = f"{bare} {milliseconds(bare_s)}"
    return Row(
        what=what, ours=milliseconds(ours_s), against=against, ratio=f"{ours_s / bare_s:.2f} ×", bound="", ok=None
    )


def p50(samples: Sequence[float]) -> float:
    """The median."""
    return median(samples)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| what | Corral | against | ratio | bound | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = "" if row.ok is None else ("yes" if row.ok else "**no**")
        lines.append(f"| {row.what} | {row.ours} | {row.against} | {row.ratio} | {row.bound} | {met} |")
    return "\n".join(lines)
