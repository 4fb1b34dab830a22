"""Actions as users see them: command line and SDK against a whole `corral up`, whose scheduler is killed once."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.client import Corral
from corral.client.action_model import ActionCommand
from corral.kernel.digest import Digest
from corral.kernel.errors import NotFound
from corral.testing.processes import (
    CorralProcess,
    clean_environment,
    fixed_addresses,
    public_directory,
    wait_until,
    why_no_agent,
)

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]


@pytest.fixture(scope="module")
def up() -> Iterator[CorralProcess]:
    with public_directory() as home:
        process = CorralProcess("up", home, *fixed_addresses(), "reapi.address=off")
        try:
            process.start()
            yield process
        finally:
            process.stop()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "in.txt").write_text("words\n")
    tool = tmp_path / "tool.sh"
    tool.write_text("#!/bin/sh\ntr a-z A-Z < src/in.txt\n")
    tool.chmod(0o755)
    return tmp_path


def corral(up: CorralProcess, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corral", "action", *arguments],
        env={**clean_environment(), "CORRAL_URL": up.url},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def run(up: CorralProcess, here: Path, *more: str, script: str = "./tool.sh > out/result; echo told") -> str:
    """Run an action on the local files; its digest and how it was come by."""
    done = corral(
        *(
            up,
            here,
            "run",
            "-I",
            "src:src",
            "-I",
            "tool.sh",
            "-o",
            "out",
            "--into",
            "fetched",
            "-e",
            "PATH=/usr/bin:/bin",
        ),
        *(*more, "--", "/bin/sh", "-c", f"mkdir -p out; {script}"),
    )
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr
    return done.stderr


def digest_in(text: str) -> str:
    found = re.search(r"sha256:[0-9a-f]{64}-\d+", text)
    assert found is not None, text
    return found[0]


def test_a_command_runs_once_and_what_differs_later_is_named(up: CorralProcess, here: Path) -> None:
    first = run(up, here)
    assert "run on wrk_" in first
    assert (here / "fetched" / "out" / "result").read_text() == "WORDS\n"

    assert "found in the cache" in run(up, here)
    assert "run on wrk_" in run(up, here, "--again")

    (here / "src" / "in.txt").write_text("other\n")
    second = run(up, here, "-e", "EXTRA=1")
    assert (here / "fetched" / "out" / "result").read_text() == "OTHER\n"
    explained = corral(up, here, "explain", digest_in(first), digest_in(second)).stdout.splitlines()
    assert explained[0].startswith("the input src/in.txt was sha256:")
    assert explained[1:] == ['the environment variable EXTRA is new: "1"']

    shown = corral(up, here, "show", digest_in(first)).stdout
    assert re.search(r"^outputs +out$", shown, re.MULTILINE)
    assert re.search(r"^result +exit 0, stored 2", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--", "/bin/sh", "-c", "echo partly; exit 7"], 7, ""),
        (["--timeout", "1s", "--", "/bin/sh", "-c", "echo partly; sleep 60"], 124, "did not end within"),
        (["--", "/bin/sh", "-c", "echo partly; kill -9 $$"], 137, "SIGKILL"),
    ],
)
def test_the_end_of_the_command_is_the_end_of_the_call(
    up: CorralProcess, here: Path, arguments: list[str], status: int, words: str
) -> None:
    done = corral(up, here, "run", *arguments)

    assert (done.returncode, done.stdout) == (status, "partly\n")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "-p", "imgae=x", "--", "true"], 'did you mean "image"'),
        (["run", "-I", "absent", "--", "true"], "absent does not exist"),
        (["run", "-o", "../up", "--", "true"], "leads out of the input root"),
        (["show", "sha256:" + "0" * 64 + "-1"], "there is no action"),
        (["show", "nonsense"], "is not a digest"),
    ],
)
def test_bad_input_gets_one_clear_sentence(up: CorralProcess, here: Path, arguments: list[str], words: str) -> None:
    done = corral(up, here, *arguments)

    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_killed_scheduler_loses_no_action_that_runs_or_waits(up: CorralProcess, tmp_path: Path) -> None:
    async with Corral(up.url) as client:
        digests = [
            await client.actions.upload(ActionCommand(arguments=("/bin/sh", "-c", f"sleep 1.5; echo {n}")), {})
            for n in range(12)
        ]
        before = [await client.actions.begin(digest) for digest in digests]
        assert {view.stage for view in before} <= {"queued", "executing"}

        scheduler = up.child("scheduler")
        assert scheduler is not None
        os.kill(scheduler.pid, signal.SIGKILL)
        scheduler.wait(30)
        await asyncio.to_thread(wait_until, lambda: up.child("scheduler") is not None, "another scheduler")

        for view, digest in zip(before, digests, strict=True):
            after = await client.actions.wait_ended(view.execution)
            assert after.ended == "exited", after
            assert (await client.actions.show(digest)).cached is not None


async def test_an_execution_that_is_canceled_says_so_to_everybody(up: CorralProcess) -> None:
    async with Corral(up.url) as client:
        digest = await client.actions.upload(ActionCommand(arguments=("/bin/sleep", "60")), {})
        view = await client.actions.begin(digest)
        joined = await client.actions.begin(digest)

        await client.actions.cancel(view.execution)
        ended = await client.actions.wait_ended(joined.execution)

        assert joined.execution == view.execution
        assert ended.problem is not None
        assert (ended.problem.code, ended.result) == ("conflict", None)
        with pytest.raises(NotFound):
            await client.actions.wait("task_00000000000000000000000000")
        assert Digest.parse(ended.action) == digest
