"""Bad input, as it reaches a running Corral: every piece gets one clear error, and nothing is lost by it."""

import hashlib
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from corral.client import Corral
from corral.client.trees import upload_tree
from corral.kernel.errors import CorralError, InvalidSpec
from corral.testing.processes import CorralProcess, clean_environment, wait_until, why_no_agent

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]

BLUE, RED = "blue-token-0123456789", "red-token-0123456789"
CONFIG = f"""
[tenants.blue]
tokens = ["{BLUE}"]
[tenants.red]
tokens = ["{RED}"]
"""
NO_SUCH_TASK = "task_01m81h00000000000000000000"


@dataclass(frozen=True)
class Stranger:
    """Somebody at a terminal, with the token of a tenant."""

    url: str
    token: str

    def corral(
        self, *arguments: str, given: bytes = b"", cwd: Path | None = None, within_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "corral", *arguments],
            env={**clean_environment(), "CORRAL_URL": self.url, "CORRAL_TOKEN": self.token},
            input=given,
            capture_output=True,
            cwd=cwd,
            timeout=within_s,
            check=False,
        )

    def complaint(self, *arguments: str, status: int = 2, cwd: Path | None = None) -> str:
        """What a refused command says; it must be text for people, and leave with ``status``."""
        done = self.corral(*arguments, cwd=cwd)
        said = done.stderr.decode()
        assert done.returncode == status, (done.returncode, done.stdout, said)
        assert "Traceback" not in said
        return said

    def tasks(self) -> list[str]:
        """The ids of all tasks of the tenant."""
        answer = httpx.get(
            f"{self.url}/api/v1/tasks", params={"limit": 1000}, headers={"authorization": f"Bearer {self.token}"}
        )
        return [task["id"] for task in answer.raise_for_status().json()["tasks"]]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CorralProcess]:
    home = tmp_path_factory.mktemp("bad")
    (home / "corral.toml").write_text(CONFIG)
    process = CorralProcess("up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0")
    process.start()
    try:
        yield process
    finally:
        process.stop()
        assert "Traceback" not in process.words()


@pytest.fixture(scope="module")
def blue(up: CorralProcess) -> Stranger:
    return Stranger(up.url, BLUE)


@pytest.fixture(scope="module")
def red(up: CorralProcess) -> Stranger:
    return Stranger(up.url, RED)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--runtime", "bublewrap"], 'did you mean "bubblewrap"?'),
        (["--runtime", "runhcs-wcow-hypervisor"], "it needs Windows"),
        (["--memory", "-5"], 'write for example "512MiB"'),
        (["--memory", "200TB"], "is out of range"),
        (["--memory", "99999999999999GB"], "more than any machine has"),
        (["--disk", "lots"], "is not a size"),
        (["--cpus", "0"], "is out of range"),
        (["--cpus", "nan"], "is out of range"),
        (["--processes", "-5"], "is out of range"),
        (["--files", "0"], "is out of range"),
        (["--timeout", "-5s"], "is not a duration"),
        (["--timeout", "0"], "the command could never run"),
        (["--priority", "urgent"], "'highest', 'high', 'normal', 'low', 'lowest'"),
        (["--group", "../x"], "group: up to 200 of"),
        (["--needs", "yesterday"], "is not the id of a task"),
        (["--needs", NO_SUCH_TASK], "does not exist"),
        (["-e", "=x"], "write NAME=VALUE"),
        (["-e", "A B=x"], "is no name of a variable"),
        (["-a", "/etc/passwd"], "is absolute"),
        (["-a", "../../etc/passwd"], "leaves the task's working directory"),
        (["-a", ""], "is empty"),
        (["--cache", "npm:../.."], "leaves the task's working directory"),
        (["-I", "/no/such/place"], "there is nothing at"),
        (["-I", "/dev/zero"], "is neither a file nor a directory"),
        (["-I", "artifact:task_x/name"], "is not the id of a task"),
        (["--bogus"], "No such option"),
    ],
)
def test_what_can_never_run_is_refused_before_it_is_queued(blue: Stranger, options: list[str], sentence: str) -> None:
    before = blue.tasks()

    said = blue.complaint("run", *options, "--", "true")

    assert sentence in said
    assert blue.tasks() == before


def test_fifos_links_that_lead_out_and_what_cannot_be_read_are_no_inputs(blue: Stranger, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "out").symlink_to("/etc")
    (tmp_path / "devices").mkdir()
    os.mkfifo(tmp_path / "devices" / "fifo")

    assert "neither a file nor a directory" in blue.complaint("run", "-I", "fifo", "--", "true", cwd=tmp_path)
    assert "'out' points to '/etc'" in blue.complaint("run", "-I", "linked", "--", "true", cwd=tmp_path)
    assert "is a fifo" in blue.complaint("run", "-I", "devices", "--", "true", cwd=tmp_path)


def test_a_task_that_no_worker_can_run_yet_says_so_while_it_waits(blue: Stranger, tmp_path: Path) -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-m", "corral", "run", "--runtime", "really_really_dangerous", "--", "true"],
        env={**clean_environment(), "CORRAL_URL": blue.url, "CORRAL_TOKEN": blue.token},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    task_id = waiting.stderr.readline().split()[0]

    said = waiting.stderr.readline()

    assert 'no live worker offers the runtime "really_really_dangerous"; offered: bubblewrap' in said
    assert f"corral why {task_id}" in said
    waiting.terminate()
    _, more = waiting.communicate(timeout=20)
    assert waiting.returncode == 128 + 15
    assert f"{task_id} canceled" in more


@pytest.mark.parametrize(
    ("options", "script", "sentence", "cure"),
    [
        (["--memory", "64MiB"], "head -c 200M /dev/zero | tail", "all of its 64.0 MiB of memory", "--memory"),
        (["--disk", "8MiB"], "head -c 20M /dev/zero > x", "/work is full: it holds 8.0 MiB", "--disk"),
        (["--disk", "8MiB"], "head -c 20M /dev/zero > /tmp/x", "/tmp is full: it holds 8.0 MiB", "--disk"),
        (["--files", "10"], "for i in $(seq 20); do : > $i || exit 1; done", "all the files", "--files"),
        (["--processes", "5"], "for i in $(seq 20); do sleep 2 & done; wait", "all of its 5 processes", "--processes"),
        (["--timeout", "0.5s"], "sleep 60", "after its max_run_time of 0.5 s", "max_run_time"),
    ],
)
def test_a_limit_is_named_with_its_value_and_with_how_to_raise_it(
    blue: Stranger, options: list[str], script: str, sentence: str, cure: str
) -> None:
    done = blue.corral("run", *options, "--", "sh", "-c", script)

    said = done.stderr.decode()
    assert done.returncode != 0
    assert sentence in said, said
    assert cure in said
    assert b"[corral:error]" in done.stdout  # the log says it too, for those who read it later


def test_by_default_a_full_folder_is_a_full_folder_and_not_out_of_memory(blue: Stranger) -> None:
    done = blue.corral("run", "--", "sh", "-c", "head -c 3G /dev/zero > x")

    assert done.returncode == 1
    assert "/work is full: it holds 1.0 GiB" in done.stderr.decode()


def test_stdout_and_stderr_come_in_the_order_in_which_they_were_written(blue: Stranger) -> None:
    done = blue.corral("run", "--", "sh", "-c", "for i in $(seq 200); do echo o$i; echo e$i >&2; done")

    assert done.stdout == b"".join(b"o%d\ne%d\n" % (i, i) for i in range(1, 201))


def test_quiet_leaves_only_the_log(blue: Stranger) -> None:
    done = blue.corral("run", "--quiet", "--", "sh", "-c", "echo mine; exit 3")

    assert (done.returncode, done.stdout, done.stderr) == (3, b"mine\n", b"")


def test_a_line_of_100_mb_and_bytes_that_are_no_text_pass_a_pipe_unchanged(blue: Stranger) -> None:
    script = "printf '\\377\\376\\000\\033[2J'; head -c 100000000 /dev/zero | tr '\\0' x"

    done = blue.corral("run", "--quiet", "--timeout", "3m", "--", "sh", "-c", script, within_s=180)

    assert done.returncode == 0, done.stderr
    wanted = b"\xff\xfe\x00\x1b[2J" + b"x" * 100_000_000
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(wanted).digest()


def test_a_terminal_sees_colours_and_no_other_control_sequence(blue: Stranger) -> None:
    script = r"printf '\033[31mred\033[0m \033]0;title\007 \033[2J \302\233c \233\x32J \377end\n'"

    status, shown = on_a_terminal(blue, "run", "--quiet", "--", "sh", "-c", script)

    assert status == 0
    assert b"\x1b[31mred\x1b[0m" in shown
    assert b"\\x1b]0;title\\x07" in shown
    assert b"\\x1b[2J" in shown
    assert not any(control in shown for control in (b"\x1b]", b"\x1b[2J", b"\x07", b"\x9b", b"\xff"))
    assert b"end" in shown


def test_on_a_terminal_a_limit_is_told_once(blue: Stranger) -> None:
    status, shown = on_a_terminal(blue, "run", "--timeout", "0.2s", "--", "sleep", "60")

    assert status == 143
    assert shown.count(b"was killed after its max_run_time") == 1
    assert shown.rstrip().endswith(b": failed")


def on_a_terminal(who: Stranger, *arguments: str) -> tuple[int, bytes]:
    """The status of a command, and what its terminal was sent."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "corral", *arguments],
        env={**clean_environment(), "CORRAL_URL": who.url, "CORRAL_TOKEN": who.token, "TERM": "xterm"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while piece := _read(ours):
        shown += piece
    os.close(ours)
    return process.wait(20), shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: the last one who had it open has left
        return b""


@pytest.mark.parametrize(
    ("make", "artifact", "sentence"),
    [
        ("mkfifo pipe", "pipe", "pipe"),
        ("ln -s /etc/passwd link", "link", "link"),
        ("mkdir d; mkfifo d/pipe", "d/", "pipe"),
        ("true", "absent.txt", "absent.txt"),
        ("mkdir out.txt", "out.txt", "out.txt"),
    ],
)
def test_what_is_no_file_is_no_artifact_and_fetches_nothing(
    blue: Stranger, tmp_path: Path, make: str, artifact: str, sentence: str
) -> None:
    done = blue.corral("run", "-a", artifact, "-o", str(tmp_path / "out"), "--", "sh", "-c", make)

    assert done.returncode == 1, done.stderr
    assert sentence in done.stderr.decode()
    assert not list(tmp_path.rglob("*")) or list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_output_directory_that_cannot_be_is_said_to_be_that(blue: Stranger, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    said = blue.complaint("run", "-a", "out", "-o", "file/below", "--", "touch", "out", cwd=tmp_path)

    assert "file/below: cannot be written: Not a directory" in said
    assert "--output-dir" in said


def test_an_artifact_is_never_written_through_a_link_of_the_output_directory(blue: Stranger, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d").symlink_to(tmp_path / "elsewhere")

    done = blue.corral("run", "-a", "d/x", "-o", "out", "--", "sh", "-c", "mkdir d; echo 1 > d/x", cwd=tmp_path)

    assert done.returncode == 2
    assert "a link in out leads elsewhere; it was not fetched" in done.stderr.decode()
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_tree_that_lies_about_its_paths_is_malformed_and_never_reaches_a_sandbox(
    blue: Stranger, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "xx").write_text("1")
    async with Corral(blue.url, blue.token) as corral:
        store = corral.uploads._blobs
        honest = b"".join([piece async for piece in store.read("", await upload_tree(store, tmp_path / "tree"))])
        for name in (b"..", b"a/", b".\x00"[:2]):
            (tmp_path / "blob").write_bytes(honest.replace(b"xx", name))
            digest = await corral.uploads.file(tmp_path / "blob")
            body = {"payload": {"command": ["ls"], "inputs": [{"path": "in", "tree": str(digest)}]}}
            task = await corral.tasks.wait((await corral.tasks.submit_raw(body))[0].id)

            assert (task.phase.value, task.reason) == ("exception", "malformed-payload"), name
            assert task.last_run is not None
            assert task.last_run.message


def test_an_id_of_another_tenant_is_an_id_of_nobody(blue: Stranger, red: Stranger, tmp_path: Path) -> None:
    task_id = blue.corral("run", "-d", "--", "sh", "-c", "echo secret; sleep 300").stdout.decode().strip()

    for verb in (["task", "show"], ["task", "log"], ["task", "story"], ["task", "cancel"], ["task", "rerun"], ["why"]):
        said = red.complaint(*verb, task_id)
        assert said.replace(task_id, NO_SUCH_TASK) == red.complaint(*verb, NO_SUCH_TASK)
    assert "does not exist" in red.complaint("run", "--needs", task_id, "--", "true")
    assert red.corral("audit", "list", "--task", task_id).stdout == b""
    assert task_id not in red.tasks()
    assert blue.corral("task", "cancel", task_id).returncode == 0


@pytest.mark.parametrize("task_id", ["x/y", "../workers", "..", "", "task_", "a" * 5000, "\x1b[2J", "%2e%2e"])
def test_whatever_is_typed_for_an_id_names_no_task_and_nothing_else(blue: Stranger, task_id: str) -> None:
    said = blue.complaint("task", "show", task_id)

    assert "no task" in said or "nothing has the id" in said, said
    assert "\x1b" not in said
    assert len(said) < 500


def test_a_token_of_nobody_is_refused_with_the_cure(up: CorralProcess) -> None:
    said = Stranger(up.url, "an-old-token-0123456789").complaint("task", "list")

    assert "CORRAL_TOKEN" in said


@pytest.mark.parametrize(
    ("body", "places"),
    [
        (b"{", ("not JSON",)),
        (b"[]", ("tasks",)),
        (b'{"payload": {"command": "ls"}}', ("payload.command",)),
        (b'{"payload": {"comand": ["ls"]}}', ('did you mean "command"', "payload.command")),
        (b'{"paylod": {}}', ('did you mean "payload"',)),
        (b'{"payload": {"command": []}}', ("payload.command",)),
        (b'{"payload": {"command": ["a\\u0000b"]}}', ("NUL",)),
        (b'{"payload": {"command": ["ls"]}, "deadline_s": -1, "retries": 1000000}', ("deadline_s", "retries")),
        (b'{"payload": {"command": ["ls"], "resources": {"memory": "x", "gpus": 1}}}', ("memory", "gpus")),
    ],
)
def test_mistakes_of_a_file_are_named_by_their_places(blue: Stranger, body: bytes, places: tuple[str, ...]) -> None:
    before = blue.tasks()

    done = blue.corral("task", "submit", "-", given=body)

    said = done.stderr.decode()
    assert done.returncode == 2, said
    for place in places:
        assert place in said, said
    assert blue.tasks() == before


async def test_the_sdk_raises_the_same_errors(blue: Stranger) -> None:
    async with Corral(blue.url, blue.token) as corral:
        with pytest.raises(InvalidSpec) as refused:
            await corral.tasks.submit_raw({"payload": {"command": ["ls"], "network": 3, "artifacts": [{"path": "/x"}]}})
        assert len(refused.value.mistakes) == 2
        for task_id in ("..", "x/y", NO_SUCH_TASK):
            with pytest.raises(CorralError):
                await corral.tasks.get(task_id)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            "UPDATE alembic_version SET version_num = '9999'",
            "is of a newer version (9999) than this program",
        ),
        ("", "the database file is damaged"),
    ],
)
def test_a_database_that_no_restart_can_cure_is_refused_at_once_and_left_alone(
    tmp_path: Path, spoil: str, sentence: str
) -> None:
    settings = ("scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0")
    scheduler = CorralProcess("scheduler", tmp_path, *settings)
    scheduler.start()
    scheduler.stop()
    database = next(tmp_path.rglob("*.db"))
    if spoil:
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(spoil)
    else:
        database.write_bytes(b"no database" * 1000)
    before = hashlib.sha256(database.read_bytes()).digest()
    up = CorralProcess("up", tmp_path, *settings)

    up.start_nowait()
    wait_until(lambda: not up.process.is_running() or up.process.status() == "zombie", "its end")

    said = up.words()
    assert up.stop() == 2, said
    assert said.count(sentence) == 1
    assert "event=restarting" not in said
    assert "Traceback" not in said
    assert hashlib.sha256(database.read_bytes()).digest() == before
