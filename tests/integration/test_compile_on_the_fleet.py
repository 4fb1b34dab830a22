"""The whole way: wrapper, daemon, route, door, sandbox, and back; with `corral up` as a user starts it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from corral.testing.compiles import Compiles, compile_fleet, compiles
from corral.testing.processes import CorralProcess, why_no_agent

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine"),
]


@pytest.fixture(scope="module")
def fleet() -> Iterator[CorralProcess]:
    with compile_fleet() as up:
        yield up


def _project(folder: Path) -> Path:
    (folder / "inc").mkdir(parents=True)
    (folder / ".corral").touch()
    (folder / "inc" / "x.h").write_text("#define X 1\n")
    (folder / "a.c").write_text('#include <stdio.h>\n#include "x.h"\nint f(void) { int u; return puts("") + X; }\n')
    return folder


_LINE = ("gcc", "-Wall", "-g", "-Iinc", "-MD", "-c", "a.c", "-o", "a.o")


def _compile(running: Compiles, project: Path) -> tuple[bytes, bytes]:
    (project / "a.o").unlink(missing_ok=True)
    done = running.run(*_LINE, cwd=project)
    assert done.returncode == 0, done.stderr
    return (project / "a.o").read_bytes(), done.stderr


def test_a_compile_runs_in_a_sandbox_of_a_worker_and_the_next_user_finds_it(
    fleet: CorralProcess, tmp_path: Path
) -> None:
    project = _project(tmp_path / "project")
    settings = {"CORRAL_COMPILE__REMOTE__SCHEDULER": fleet.url, "CORRAL_COMPILE__REMOTE__PARANOID": "true"}
    settings["LC_ALL"] = "C"
    plain = subprocess.run(_LINE, cwd=project, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"})
    made, rules = (project / "a.o").read_bytes(), (project / "a.d").read_bytes()

    with compiles(settings) as first:
        assert _compile(first, project) == (made, plain.stderr)
        assert (project / "a.d").read_bytes().split() == rules.split()
        assert _compile(first, project)[0] == made
        assert first.outcomes() == ["remote-run", "local-hit"]
    rows = httpx.get(f"{fleet.url}/api/v1/audit", params={"limit": 1}, timeout=30).json()["rows"]
    assert rows[0]["argv"][0].endswith("gcc")
    assert (rows[0]["runtime"], rows[0]["phase"]) == ("bubblewrap", "completed")
    with compiles(settings) as second:
        assert _compile(second, project)[0] == made
        (project / "inc" / "x.h").write_text("#define X 2\n")
        object_, stderr = _compile(second, project)
        events = second.events()
    assert object_ != made
    assert [(each.outcome.value, each.why) for each in events] == [("remote-hit", ""), ("remote-run", "header")], stderr


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"slots": 0}, 200, "routes"),
        ({"slots": 100_000}, 422, "slots"),
        ({"purpose": "mining"}, 422, "purpose"),
        ({"slots": "many"}, (400, 422), "slots"),
        ({"slot": 1}, (400, 422), "slot"),
    ],
)
def test_a_question_for_a_route_is_answered_or_told_what_is_wrong(
    asked: dict[str, object], status: int | tuple[int, ...], said: str, fleet: CorralProcess
) -> None:
    answer = httpx.post(f"{fleet.url}/api/v1/routes", json=asked, timeout=30)

    assert answer.status_code in (status if isinstance(status, tuple) else (status,)), answer.text
    assert said in answer.text


def test_a_dead_scheduler_costs_one_line_and_no_build(tmp_path: Path) -> None:
    project = _project(tmp_path / "project")
    with compiles({"CORRAL_COMPILE__REMOTE__SCHEDULER": "http://127.0.0.1:9", "LC_ALL": "C"}) as running:
        done = running.run(*_LINE, cwd=project)

        assert done.returncode == 0
        assert (project / "a.o").stat().st_size > 0
        assert [line for line in done.stderr.decode().splitlines() if "corral" in line][1:] == []
        assert running.outcomes() == ["local-run"]
