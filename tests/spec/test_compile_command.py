"""The command `corral` as a script of the shell: compiles go to the wrapper beside it, everything else to Python."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from corral.cli.cc.group import app
from corral.entry import CC_VERBS

SCRIPT = Path(__file__).parents[2] / "native" / "cc" / "corral.sh"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory of programs as pip makes it, in which each says its name and what it was given."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("python3", "corral-cc"):
        (place / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (place / name).chmod(0o755)
    (place / "corral").write_bytes(SCRIPT.read_bytes())
    (place / "corral").chmod(0o755)
    return place


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cc", "gcc", "-c", "a b.c"), "corral-cc gcc -c a b.c"),
        (("cc", "./clang"), "corral-cc ./clang"),
        (("cc", "stats", "--json"), "python3 -P -m corral cc stats --json"),
        (("cc", "--help"), "python3 -P -m corral cc --help"),
        (("cc",), "python3 -P -m corral cc"),
        (("run", "gcc"), "python3 -P -m corral run gcc"),
        ((), "python3 -P -m corral"),
    ],
)
def test_a_compile_starts_no_python(installed: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "elsewhere").symlink_to(installed / "corral")

    for program in (installed / "corral", tmp_path / "elsewhere"):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == said


def test_the_script_the_entry_and_the_table_name_the_same_verbs() -> None:
    line = re.search(r'"" \| -\* \| (.*)\) ;;', SCRIPT.read_text())
    assert line is not None

    assert set(line[1].split(" | ")) == CC_VERBS
    assert set(get_command(app).verbs) == CC_VERBS  # type: ignore[attr-defined]
