"""A reset that comes with the end of an exec: one round trip less for the next user of the sandbox."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.sandboxes.link import Setup
from corral.sandboxes.model import ExecRequest
from corral.sandboxes.sandbox import Sandbox
from corral.testing.bare_agent import bare_sandbox


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writable = tmp_path / "writable"
    writable.mkdir()
    return writable


@pytest.fixture
async def sandbox(folder: Path) -> AsyncIterator[Sandbox]:
    async with bare_sandbox(Setup(writable=(str(folder),), grace_s=0.2)) as (sandbox, _):
        yield sandbox


def shell(script: str, *, reset_after: bool = False) -> ExecRequest:
    return ExecRequest(argv=("/bin/sh", "-c", script), env=(("PATH", "/usr/bin:/bin"),), reset_after=reset_after)


async def test_an_exec_that_nobody_needs_anything_of_leaves_the_sandbox_as_new(sandbox: Sandbox, folder: Path) -> None:
    result = await sandbox.exec(shell(f"mkdir {folder}/a && echo x > {folder}/a/b", reset_after=True))

    assert (result.reset, sandbox.as_new) == (True, True)
    assert os.listdir(folder) == []
    assert await sandbox.reset()

    await sandbox.exec(shell(f"echo x > {folder}/c"))
    assert not sandbox.as_new
    assert await sandbox.reset()
    assert os.listdir(folder) == []


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$", "setsid sleep 7301.5 &"])
async def test_an_exec_with_trouble_is_not_followed_by_a_reset(sandbox: Sandbox, folder: Path, script: str) -> None:
    result = await sandbox.exec(shell(f"echo x > {folder}/kept; {script}", reset_after=True))

    assert not result.reset
    assert not sandbox.as_new
    assert os.listdir(folder) == ["kept"]


async def test_an_exec_beside_another_one_is_not_followed_by_a_reset(sandbox: Sandbox, folder: Path) -> None:
    beside = await sandbox.start(shell("read line"))
    result = await sandbox.exec(shell(f"echo x > {folder}/kept", reset_after=True))

    assert not result.reset
    assert os.listdir(folder) == ["kept"]
    beside.close_stdin()
    await beside.wait()


async def test_an_exec_that_ends_after_another_one_began_does_not_count_as_new(sandbox: Sandbox, folder: Path) -> None:
    """The agent may have made it new before the second one began, or after: only it could tell."""
    first = await sandbox.start(shell("read line", reset_after=True))
    await sandbox.exec(shell("true"))
    first.close_stdin()
    await first.wait()

    assert not sandbox.as_new
