"""The verbs of `corral cc`, as users type them, on a daemon and a store of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.entry import WRAPPER
from corral.testing.compiles import Compiles, aged, compiles, has_ended, wait_until

pytestmark = [
    pytest.mark.skipif(not Path(WRAPPER).is_file(), reason=f"{WRAPPER} is not built: make native"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]


@pytest.fixture
def own() -> Iterator[Compiles]:
    with compiles() as ours:
        yield ours


@pytest.fixture
def project(own: Compiles) -> Path:
    place = own.home / "project"
    place.mkdir()
    (place / ".corral").touch()
    (place / "x.h").write_text("#define X 1\n")
    (place / "a.c").write_text('#include "x.h"\nint f(void) { return X; }\n')
    aged(*place.iterdir())
    return place


def corral(own: Compiles, *words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "corral", "cc", *words],
        cwd=cwd or own.home,
        env=own.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_stats_sum_up_hits_misses_by_reason_what_is_not_for_us_and_the_time_saved(own: Compiles, project: Path) -> None:
    for words in (("-c", "a.c"), ("-c", "a.c"), ("--version",), ("-c", "missing.c")):
        own.run("gcc", *words, cwd=project)
        own.events()

    text, counted = corral(own, "stats"), json.loads(corral(own, "stats", "--json").stdout)

    assert text.returncode == 0, text.stderr
    assert "50% of what can be cached" in text.stdout
    assert "1 first-time" in text.stdout
    assert (counted["requests"], counted["hits"], counted["runs"], counted["failed"]) == (4, 1, 1, 1)
    assert counted["bypasses"] == {"not-a-compile": 1}
    assert counted["saved_s"] > 0
    assert json.loads(corral(own, "stats", "--since", "1h", "--json").stdout)["requests"] == 4
    assert corral(own, "stats", "--since", "soon").returncode == 2


def test_explain_takes_the_source_or_the_object_and_names_what_changed(own: Compiles, project: Path) -> None:
    own.run("gcc", "-c", "a.c", cwd=project)
    own.events()
    (project / "x.h").write_text("#define X 2\n")
    aged(project / "x.h")
    own.run("gcc", "-O2", "-c", "a.c", cwd=project)

    by_source, by_object = corral(own, "explain", "a.c", cwd=project), corral(own, "explain", "a.o", cwd=project)

    assert by_source.returncode == 0, by_source.stderr
    assert by_source.stdout == by_object.stdout
    assert "flag added: -O 2" in by_source.stdout
    assert "header x.h changed" in by_source.stdout
    assert "local run: compiled here (flag)" in by_source.stdout


def test_explain_names_the_flag_of_a_bypass_and_knows_nothing_of_strangers(own: Compiles, project: Path) -> None:
    own.run("gcc", "--coverage", "-c", "a.c", cwd=project)

    bypass, stranger = corral(own, "explain", "a.c", cwd=project), corral(own, "explain", "b.c", cwd=project)

    assert "bypass: handed to the compiler as it is (profile: --coverage)" in bypass.stdout
    assert (stranger.returncode, "nothing is known of b.c" in stranger.stderr) == (2, True)
    assert "Traceback" not in stranger.stderr


def test_inspect_shows_what_is_stored_by_source_object_or_key(own: Compiles, project: Path) -> None:
    own.run("gcc", "-c", "a.c", cwd=project)
    own.events()
    shown = json.loads(corral(own, "inspect", "a.c", "--json", cwd=project).stdout)

    by_object = json.loads(corral(own, "inspect", "a.o", "--json", cwd=project).stdout)
    by_key = corral(own, "inspect", shown["key"])
    unknown = corral(own, "inspect", "0" * 64)

    assert by_object == shown
    assert [file["role"] for file in shown["result"]["files"]] == ["object"]
    assert {path for path, _ in shown["sets"][0]["files"]} >= {"a.c", "x.h"}
    assert shown["key"] in by_key.stdout
    assert (unknown.returncode, "no stored result" in unknown.stderr) == (2, True)


def test_clean_empties_the_store_or_brings_it_down_to_a_size_and_the_daemon_notices(
    own: Compiles, project: Path
) -> None:
    shutil.copy(project / "a.c", project / "b.c")
    aged(project / "b.c")
    for name in ("a", "b"):
        own.run("gcc", "-c", f"{name}.c", cwd=project)
    own.events()
    assert len(own.entries("results")) == 2

    sized = corral(own, "clean", "--max-size", "1B")
    own.run("gcc", "-c", "a.c", cwd=project)
    own.events()
    emptied = corral(own, "clean")
    own.run("gcc", "-c", "a.c", cwd=project)

    assert (sized.returncode, emptied.returncode) == (0, 0)
    assert "-> 0 B in 0 files" in emptied.stdout
    assert own.outcomes()[2:] == ["local-run", "local-run"]
    assert corral(own, "clean", "--max-size", "much").returncode == 2


def test_stop_ends_the_daemon_when_all_is_stored_and_says_when_there_is_none(own: Compiles, project: Path) -> None:
    own.run("gcc", "-c", "a.c", cwd=project)
    pid = own.daemon

    stopped = corral(own, "stop")
    wait_until(lambda: has_ended(pid))
    none = corral(own, "stop")

    assert stopped.stdout == f"stopped the daemon, pid {pid}\n"
    assert none.stdout == "no daemon runs\n"
    assert len(own.entries("results")) == 1


def test_reload_tells_a_mistake_here_and_not_in_the_daemons_log(own: Compiles, project: Path) -> None:
    file = own.home / "corral.toml"
    file.write_text("[compile]\n")
    own.environment["CORRAL_CONFIG"] = str(file)
    own.run("gcc", "-c", "a.c", cwd=project)

    good = corral(own, "reload")
    file.write_text('[compile]\nstore_bytes = "plenty"\n')
    bad = corral(own, "reload")
    own.run("gcc", "-c", "a.c", cwd=project)

    assert f"pid {own.daemon}" in good.stdout
    assert bad.returncode == 2
    assert "store_bytes" in bad.stderr
    assert own.outcomes()[-1] == "local-hit"  # it goes on with what it had


def test_links_are_made_for_the_compilers_that_are_there_and_nothing_of_others_is_replaced(
    own: Compiles, project: Path
) -> None:
    links, mine = own.home / "links", own.home / "mine"
    mine.mkdir()
    (mine / "gcc").write_text("my own")

    made = corral(own, "install-links", str(links))
    again = corral(own, "install-links", str(links), "gcc")
    refused = corral(own, "install-links", str(mine), "gcc")
    wrong = corral(own, "install-links", str(links), "ld")
    build = subprocess.run(
        ["gcc", "-c", "a.c"],
        cwd=project,
        env={**own.environment, "PATH": f"{links}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
    )

    assert made.returncode == 0, made.stderr
    assert f'export PATH="{links}:$PATH"' in made.stdout
    assert os.readlink(links / "gcc") == str(WRAPPER)
    assert again.returncode == 0
    assert (refused.returncode, (mine / "gcc").read_text()) == (2, "my own")
    assert wrong.returncode == 2
    assert build.stderr == b""
    assert own.outcomes() == ["local-run"]
