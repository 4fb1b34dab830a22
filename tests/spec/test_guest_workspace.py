"""The folder in which a kernel is built goes with its build, however that ends."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from corral.kernel.errors import InvalidSpec
from corral.sandboxes.guest.workspace import workspace

BUILD = """
import subprocess, sys
from pathlib import Path
from corral.sandboxes.guest.workspace import workspace

with workspace(Path(sys.argv[1])) as work:
    (work.folder / "source").write_text("gigabytes")
    compiler = subprocess.Popen(["sleep", "600"], pass_fds=(work.lock,))
    print(work.folder, compiler.pid, flush=True)
    sys.stdin.read()
"""


def test_a_workspace_goes_when_its_block_ends(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), workspace(tmp_path / "kits") as work:
        (work.folder / "half").mkdir()
        raise RuntimeError("the build failed")

    assert not work.folder.exists()


def test_what_a_killed_build_left_goes_with_the_next_one_once_nobody_works_in_it(tmp_path: Path) -> None:
    build = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert build.stdin is not None
    assert build.stdout is not None
    folder, compiler = build.stdout.readline().split()
    build.kill()
    build.wait()

    with workspace(tmp_path):
        left_while_a_compiler_runs = Path(folder).exists()
    end(int(compiler))
    with workspace(tmp_path):
        left_at_last = Path(folder).exists()

    assert (left_while_a_compiler_runs, left_at_last) == (True, False)
    build.stdin.close()
    build.stdout.close()


def end(pid: int) -> None:
    process = os.pidfd_open(pid)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    select.select([process], [], [])
    os.close(process)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InvalidSpec, match=r"no guest kit can be built in .*file"), workspace(tmp_path / "file"):
        pass
