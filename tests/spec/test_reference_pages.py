"""Pages of the reference that are generated: a stale one fails."""

import subprocess
import sys
from pathlib import Path

from corral.doors.rest.docs import reference

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def test_the_page_of_rest_is_what_the_code_says() -> None:
    assert (PAGES / "rest.md").read_text(encoding="utf-8") == reference(), (
        "stale: run `python -m corral.doors.rest.docs > docs/reference/rest.md`"
    )


def test_the_page_of_the_command_line_is_what_the_code_says() -> None:
    command = [sys.executable, "-m", "typer", "corral.cli.main", "utils", "docs", "--name", "corral"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert (PAGES / "cli.md").read_text(encoding="utf-8").strip() == done.stdout.strip(), (
        f"stale: run `{' '.join(command[1:])} > docs/reference/cli.md`"
    )
