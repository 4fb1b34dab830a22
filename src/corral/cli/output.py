"""Everything that the command line prints goes through here: JSON or text, colours or not, escapes made harmless.

Rich is imported only when something is drawn with it, because many commands print nothing but plain text.
"""

import os
import re
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL: Final = re.compile(
    rb"\x1b\[[0-9;:]*m|[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]"
    rb"|(?P<text>[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})"
    rb"|[\x80-\xff]"  # no text; 0x80 to 0x9f alone are control characters of 8-bit terminals
)
PARTIAL: Final = re.compile(rb"(\x1b(\[[0-9;:]*)?|[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")
"""What may be the beginning of something that :func:`safe_bytes` must see whole."""
_ID: Final = re.compile(r"[a-z]{3,4}_[0-9a-z]{26}")
_GUTTER: Final = 3
_CUT_CHARACTERS: Final = 20
_COLOUR: Final = re.compile(rb"\x1b\[[0-9;:]*m")
PHASE_STYLES: Final = {
    "unscheduled": "dim",
    "pending": "yellow",
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "exception": "magenta",
}


def print_json(value: Any) -> None:
    """One JSON document on stdout, indented."""
    text = msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2)
    sys.stdout.write(text.decode() + "\n")


def note(label: str, text: str) -> None:
    """One line on stderr: ``corral: error: …``; the label is coloured on a terminal."""
    text = safe_text(text)
    if not label:
        sys.stderr.write(text + "\n")
        return
    colour = {"error": "31;1", "hint": "36", "warning": "33"}.get(label, "1")
    shown = f"\x1b[{colour}m{label}:\x1b[0m" if colours(sys.stderr) else f"{label}:"
    sys.stderr.write(f"corral: {shown} {text}\n")


def console(*, stderr: bool = False) -> "Console":
    """A Rich console on stdout or stderr."""
    from rich.console import Console  # noqa: PLC0415 (half of the commands draw nothing)

    return Console(stderr=stderr, highlight=False, soft_wrap=not (sys.stderr if stderr else sys.stdout).isatty())


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    empty: str,
    optional: Sequence[str] = (),
    cut: str = "",
) -> None:
    """A table on a terminal; tab-separated lines, all columns and no heads, when piped.

    ``optional`` columns are left out, the first one first, while the table is wider than the terminal; the column
    ``cut`` gets the room that is left and shows the beginning of its texts. Ids are never broken, so that they can be
    copied. Cells may not hold markup; a phase gets its colour.
    """
    if not rows:
        note("", empty)
        return
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write("\t".join(safe_text(cell) for cell in row) + "\n")
        return
    from rich import box  # noqa: PLC0415 (only when a table is drawn)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    widths = [max(len(column), *(len(row[place]) for row in rows)) for place, column in enumerate(columns)]
    shown = _fitting(columns, widths, optional, cut, terminal.width)
    taken = sum(widths[place] + _GUTTER for place in shown if columns[place] != cut)
    for place in shown:
        if columns[place] == cut:
            room = max(_CUT_CHARACTERS, terminal.width - taken)
            table.add_column(cut, overflow="ellipsis", no_wrap=True, max_width=room)
        else:
            whole = any(_ID.fullmatch(row[place]) for row in rows)
            table.add_column(columns[place], overflow="fold", no_wrap=whole)
    for row in rows:
        cells = (row[place] for place in shown)
        table.add_row(*(Text(safe_text(cell), style=PHASE_STYLES.get(cell.split(" ", 1)[0], "")) for cell in cells))
    terminal.print(table)


def _fitting(
    columns: Sequence[str], widths: Sequence[int], optional: Sequence[str], cut: str, width: int
) -> tuple[int, ...]:
    least = [min(each, _CUT_CHARACTERS) if name == cut else each for name, each in zip(columns, widths, strict=True)]
    shown = list(range(len(columns)))
    for name in optional:
        if sum(least[place] + _GUTTER for place in shown) <= width:
            break
        shown.remove(columns.index(name))
    return tuple(shown)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Aligned ``name  value`` lines; empty values are left out."""
    shown = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    bold, plain = ("\x1b[1m", "\x1b[0m") if colours(sys.stdout) else ("", "")
    for name, value in shown:
        sys.stdout.write(f"{bold}{name:<{width}}{plain}  {safe_text(value)}\n")


def leave_unread() -> int:
    """Whoever read our output has left: keep Python from flushing once more; the status that a shell would report."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def safe_bytes(data: bytes) -> bytes:
    """Bytes of other people that are fit for a terminal: text and colours stay, all else is shown as ``\\x1b``.

    An escape sequence could otherwise retitle, reprogram or type into the reader's terminal.
    """
    return _CONTROL.sub(_shown, data)


def safe_text(text: str) -> str:
    """Text of other people without any control character but newline and tab."""
    return "".join(
        char if char in "\n\t" or (char.isprintable() and char != "\x1b") else char.encode("unicode_escape").decode()
        for char in text
    )


def _shown(match: re.Match[bytes]) -> bytes:
    found = match[0]
    if match["text"]:
        return found
    if found == b"\r" or (_COLOUR.fullmatch(found) and colours(sys.stdout)):
        return found
    if _COLOUR.fullmatch(found):
        return b""
    return "".join(f"\\x{byte:02x}" for byte in found).encode()


def colours(stream: Any) -> bool:
    """True on a terminal that wants colours (NO_COLOR, no-color.org, wins)."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def at(seconds: float | None) -> str:
    """An instant for people, local time; "" for none."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
