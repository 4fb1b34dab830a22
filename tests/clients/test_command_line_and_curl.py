"""One Corral, used as strangers use it: the command line in a shell, curl, and the SDK."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.client import Corral, TaskDefinition
from corral.testing.processes import CorralProcess, clean_environment, why_no_agent

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]
FIELD = """
field() { python3 -c "import json, sys; print(json.load(sys.stdin)$1)"; }
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CorralProcess]:
    home = tmp_path_factory.mktemp("clients")
    process = CorralProcess("up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0")
    process.start()
    try:
        yield process
    finally:
        process.stop()


def shell(up: CorralProcess, script: str, cwd: Path) -> str:
    """Run a script in which ``corral`` and ``$CORRAL_URL`` mean this Corral; it must succeed. What it printed."""
    programs = cwd / ".programs"
    programs.mkdir(exist_ok=True)
    corral = programs / "corral"
    corral.write_text(f'#!/bin/sh\nexec {sys.executable} -m corral "$@"\n')
    corral.chmod(0o755)
    environment = {**clean_environment(), "CORRAL_URL": up.url, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", FIELD + script],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_program_that_a_task_built_runs_here_and_in_the_next_task(up: CorralProcess, tmp_path: Path) -> None:
    script = r"""
        make='mkdir bin; printf "#!/bin/sh\necho built\n" > bin/tool; chmod +x bin/tool'
        corral run -a bin/tool -o out -n build -- sh -c "$make"
        out/bin/tool
        built=$(corral task list --name build | cut -f1)
        corral run -q -I "artifact:$built/bin/tool" -- bin/tool
        corral run -q -a '*' -o globbed -- sh -c 'printf "#!/bin/sh\necho globbed\n" > x; chmod +x x; : > y'
        globbed/x
        test ! -x globbed/y
    """

    assert shell(up, script, tmp_path) == "built\nbuilt\nglobbed\n"


def test_scripts_can_rely_on_pipes_tabs_json_and_statuses(up: CorralProcess, tmp_path: Path) -> None:
    script = r"""
        id=$(corral run -d -n piped -- sh -c 'echo one; echo two; exit 4')
        corral task wait "$id" && exit 1 || test $? = 1
        corral task log "$id" | head -1
        corral task list --name piped | cut -f2
        corral task show "$id" --json | field '["runs"][0]["exit_status"]'
        corral audit list --task "$id" | cut -f4
        corral why "$id"
        set +e; corral run -q -- sh -c 'exit 4'; echo $?
    """

    said = shell(up, script, tmp_path).splitlines()

    assert said == ["one", "failed", "4", "4", "It failed: the command ended with exit status 4.", said[5], "4"]
    assert said[5].startswith("It got a ")


def test_a_reader_that_leaves_cancels_what_it_read_of(up: CorralProcess, tmp_path: Path) -> None:
    script = r"""
        set +o pipefail
        corral run --name endless -- yes | head -2
        echo "${PIPESTATUS[0]}"
        id=$(corral task list --name endless | cut -f1)
        corral task wait "$id" 2>&1 || true
        corral task log "$id" | head -1
        echo "${PIPESTATUS[0]}"
    """

    said = shell(up, script, tmp_path)

    assert said.splitlines()[:3] == ["y", "y", "141"]
    assert said.splitlines()[3].endswith("is exception (canceled)")
    assert said.splitlines()[4:] == ["y", "141"]


def test_whoever_asks_for_json_gets_nothing_else_also_for_a_mistake(up: CorralProcess, tmp_path: Path) -> None:
    script = r"""
        corral doctor --json | field '["runtimes"][0]["name"]'
        corral config show --json | field '["worker"]["slots"]'
        corral run --json -- echo hello 2>log | field '["task"]["phase"]'
        cat log
        corral task show task_x --json 2>error || field '["code"]' <error
        corral run --memory lots --json -- true 2>error || field '["mistakes"][0]' <error
        corral task list --limit none --json 2>error || field '["code"]' <error
    """

    said = shell(up, script, tmp_path).splitlines()

    assert said[:5] == ["bubblewrap", "8", "completed", "hello", "not-found"]
    assert said[5].startswith('--memory: "lots" is not a size')
    assert said[6] == "bad-request"


def test_the_shell_completes_commands_choices_and_ids(up: CorralProcess, tmp_path: Path) -> None:
    script = r"""
        complete() { _CORRAL_COMPLETE=complete_bash COMP_WORDS="corral $1" COMP_CWORD="$2" corral; }
        id=$(corral run -d -- true)
        complete "task sh" 2
        complete "run --priority hi" 3
        complete "task show ${id%???}" 3 | grep -cx "$id"
        complete "worker drain wrk_" 3 | grep -c '^wrk_'
        CORRAL_URL=http://127.0.0.1:1 complete "task show task_" 3 2>&1
    """

    assert shell(up, script, tmp_path).split() == ["show", "highest", "high", "1", "1"]


def test_curl_submits_waits_reads_the_log_and_gets_a_problem_for_a_mistake(up: CorralProcess, tmp_path: Path) -> None:
    script = r"""
        api=$CORRAL_URL/api/v1
        id=$(curl -sSf "$api/tasks" -d '{"payload": {"command": ["echo", "by curl"]}}' | field '["id"]')
        curl -sSf "$api/tasks/$id/runs/0/log?follow=1"
        curl -sSfN "$api/tasks/$id/runs/0/log/events" | grep -c '^data:'
        curl -sS "$api/tasks" -d '{"payload": {"comand": ["x"]}}' -w '%{http_code} %{content_type}\n' -o problem.json
    """

    said = shell(up, script, tmp_path).splitlines()

    assert said[0] == "by curl"
    assert int(said[1]) >= 1
    assert said[2] == "422 application/problem+json"
    problem = json.loads((tmp_path / "problem.json").read_text())
    assert problem["code"] == "invalid-spec"
    assert any('did you mean "command"' in mistake for mistake in problem["mistakes"])


async def test_the_sdk_runs_what_its_own_documentation_shows(up: CorralProcess) -> None:
    async with Corral(up.url) as corral:
        task = await corral.tasks.submit(TaskDefinition(payload={"command": ["echo", "by the SDK"]}))
        log = b"".join([piece async for piece in corral.logs.read(task.id, 0, follow=True)])
        done = await corral.tasks.wait(task.id)

    assert (log, done.phase.value, done.exit_status) == (b"by the SDK\n", "completed", 0)
