"""Pages of the reference that are generated: a stale one fails."""

from pathlib import Path

from corral.cli.docs import reference as cli_reference
from corral.doors.rest.docs import reference

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def test_the_page_of_rest_is_what_the_code_says() -> None:
    assert (PAGES / "rest.md").read_text(encoding="utf-8") == reference(), (
        "stale: run `python -m corral.doors.rest.docs > docs/reference/rest.md`"
    )


def test_the_page_of_the_command_line_is_what_the_code_says() -> None:
    assert (PAGES / "cli.md").read_text(encoding="utf-8") == cli_reference(), (
        "stale: run `python -m corral.cli.docs > docs/reference/cli.md`"
    )
