"""The command line without a scheduler: the table of verbs, what options mean, what reaches a terminal."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

from corral.cli.lazy import LazyGroup
from corral.cli.main import VERBS, app
from corral.cli.output import PARTIAL, safe_bytes, safe_text
from corral.cli.spec import artifact_of, cache_of, environment_of, input_of
from corral.kernel.errors import InvalidSpec


def test_every_verb_of_the_table_exists_and_its_help_says_the_same() -> None:
    group = get_command(app)
    assert isinstance(group, LazyGroup)

    for name, verb in VERBS.items():
        command = group.get_command(None, name)
        assert command.name == name
        assert command.help, verb
        assert import_module(verb.module).app


def test_the_version_is_printed_without_importing_what_it_does_not_use() -> None:
    code = (
        "import sys; sys.argv = ['corral', '--version']\n"
        "from corral.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('httpx', 'rich.console', 'corral.tasks', 'asyncio.events') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    version, loaded = done.stdout.splitlines()
    assert version.startswith("corral ")
    assert "httpx" not in loaded
    assert "corral.tasks" not in loaded


def test_environment_pairs_keep_what_follows_the_first_equals_sign() -> None:
    assert environment_of(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    with pytest.raises(InvalidSpec, match="write NAME=VALUE") as caught:
        environment_of(["A", "=x"])
    assert len(caught.value.mistakes) == 2


def test_an_input_is_a_local_path_and_perhaps_a_place(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "with:colon").touch()

    assert input_of(f"{tmp_path}/dir") == (tmp_path / "dir", ".")
    assert input_of(f"{tmp_path}/file") == (tmp_path / "file", "file")
    assert input_of(f"{tmp_path}/file:a/b") == (tmp_path / "file", "a/b")
    assert input_of(f"{tmp_path}/with:colon") == (tmp_path / "with:colon", "with:colon")
    with pytest.raises(InvalidSpec, match="there is nothing at"):
        input_of(f"{tmp_path}/absent:x")


@pytest.mark.parametrize(
    ("text", "kind"), [("out.txt", "file"), ("build/", "directory"), ("*.log", "glob"), ("a/b?.o", "glob")]
)
def test_the_kind_of_an_artifact_follows_from_its_path(text: str, kind: str) -> None:
    assert artifact_of(text)["type"] == kind


def test_a_cache_has_a_name_and_a_path() -> None:
    assert cache_of("npm:.cache/npm") == {"name": "npm", "path": ".cache/npm"}
    with pytest.raises(InvalidSpec, match="NAME:PATH"):
        cache_of("npm")


@pytest.mark.parametrize(
    "attack",
    [
        b"\x1b]0;title\x07",  # retitles the window
        b"\x1b[2J",  # clears the screen
        b"\x1bP+q544e\x1b\\",  # asks the terminal to answer
        b"\x1b[6n",
        b"\xc2\x9b2J",  # the same with a C1 control character
        b"\x9b2J",  # the same as terminals of 8 bits take it
        b"\xe6\x9b2J",  # the same behind half a character
        b"\x08\x7f\x00",
        b"\xff\xfe\xc3",  # no text at all
    ],
)
def test_control_sequences_of_a_log_reach_no_terminal(attack: bytes) -> None:
    shown = safe_bytes(b"before" + attack + b"after\n")

    assert shown.startswith(b"before")
    assert shown.endswith(b"after\n")
    assert shown.decode().replace("\n", "").isprintable()


@pytest.mark.parametrize("text", ["ä✓漢😀".encode(), b"\x1b[31;1mred\x1b[0m"])
def test_a_character_or_a_colour_that_comes_in_pieces_is_held_back_until_it_is_whole(text: bytes) -> None:
    for cut in range(len(text)):
        held = PARTIAL.search(text[:cut])
        passed = held.start() if held else cut

        assert safe_bytes(text[:passed]) + safe_bytes(text[passed:]) == safe_bytes(text)


def test_plain_text_carriage_returns_and_letters_of_any_alphabet_stay() -> None:
    text = "10 %\r20 %\tfertig: äöü 漢字 ✓\n"

    assert safe_bytes(text.encode()) == text.encode()
    assert safe_text("äöü ✓") == "äöü ✓"
    assert "\x1b" not in safe_text("\x1b[31mred")
