"""The page about isolation shows the table that is tested."""

from pathlib import Path

from corral.testing.escape_suite import verdict_table

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "isolation.md"


def test_the_page_shows_the_attacks_and_verdicts_that_are_tested() -> None:
    assert verdict_table() in PAGE.read_text(), "run `python -m corral.testing.escape_suite` and put its table there"
