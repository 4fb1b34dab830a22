"""`corral up` as users meet it: real processes, a real sandbox, the real command line."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from corral.testing.processes import CorralProcess, clean_environment, wait_until, why_no_agent

pytestmark = pytest.mark.timeout(180)

FIRST_RUN_HANGS = 'if [ "$CORRAL_RUN_ID" = 0 ]; then sleep 600; fi; echo survived'
needs_agent = pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent")


class Up(CorralProcess):
    """A running `corral up` and its users' command line."""

    def __init__(self, home: Path, *settings: str) -> None:
        super().__init__("up", home, "scheduler.http=127.0.0.1:0", "scheduler.grpc=127.0.0.1:0", *settings)

    def cli(self, *arguments: str, cwd: Path | None = None, within_s: float = 60) -> subprocess.CompletedProcess[str]:
        return run_cli(*arguments, url=self.url, cwd=cwd or self.home, within_s=within_s)

    def part(self, role: str) -> psutil.Process:
        found = self.child(role)
        assert found is not None, f"there is no {role}"
        return found

    def descendants(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)


def run_cli(
    *arguments: str, url: str = "", cwd: Path | None = None, within_s: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corral", *arguments],
        env=environment(url),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


def environment(url: str = "") -> dict[str, str]:
    return {**clean_environment(), "CORRAL_URL": url} if url else clean_environment()


def start_up(directory: Path, *settings: str) -> Up:
    up = Up(directory, *settings)
    up.start()
    return up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if why_no_agent():
        pytest.skip(why_no_agent())
    running = start_up(tmp_path_factory.mktemp("up"))
    try:
        yield running
    finally:
        running.stop()


def test_run_streams_the_log_and_exits_with_the_commands_own_status(up: Up) -> None:
    done = up.cli("run", "--", "sh", "-c", "echo to stdout; echo to stderr >&2; exit 7")

    assert done.returncode == 7
    assert "to stdout\n" in done.stdout
    assert "to stderr\n" in done.stdout
    assert "Traceback" not in done.stderr


def test_inputs_go_in_and_artifacts_come_out(up: Up, tmp_path: Path) -> None:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "deep" / "a.txt").write_text("from here\n")
    (tmp_path / "tool.sh").write_text("#!/bin/sh\necho ran the tool\n")
    (tmp_path / "tool.sh").chmod(0o755)
    command = "./tool.sh && cp deep/a.txt out.txt && mkdir -p tree/x && cp out.txt tree/x/b && touch one.log two.log"

    done = up.cli(
        *("run", "-I", "src", "-I", "tool.sh", "-a", "out.txt", "-a", "tree/", "-a", "*.log", "-o", "fetched"),
        *("--", "sh", "-c", command),
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert "ran the tool" in done.stdout
    fetched = {
        str(path.relative_to(tmp_path / "fetched")) for path in (tmp_path / "fetched").rglob("*") if path.is_file()
    }
    assert fetched == {"out.txt", "tree/x/b", "one.log", "two.log"}
    assert (tmp_path / "fetched" / "tree" / "x" / "b").read_text() == "from here\n"


def test_an_artifact_that_is_missing_fails_the_run_and_is_named_once(up: Up, tmp_path: Path) -> None:
    done = up.cli("run", "-a", "absent.txt", "--", "true", cwd=tmp_path)

    assert done.returncode == 1
    assert done.stderr.count('there is no file "absent.txt"') == 1
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_what_was_asked_for(up: Up) -> None:
    done = up.cli("run", "-e", "GREETING=hello there", "--", "sh", "-c", 'echo "$GREETING"')

    assert done.stdout == "hello there\n"


def test_a_command_that_does_not_exist_is_explained(up: Up) -> None:
    done = up.cli("run", "--", "/no/such/program")

    assert done.returncode == 127
    assert "/no/such/program" in done.stdout + done.stderr


def test_a_task_can_be_followed_shown_listed_and_told(up: Up) -> None:
    task_id = up.cli("run", "--detach", "--name", "a-name", "--", "sh", "-c", "echo first; echo second").stdout.strip()

    log = up.cli("task", "log", "-f", task_id)
    waited = up.cli("task", "wait", task_id)

    assert log.stdout == "first\nsecond\n"
    assert waited.returncode == 0, waited.stderr
    shown = json.loads(up.cli("task", "show", task_id, "--json").stdout)
    assert (shown["phase"], shown["name"], shown["runs"][0]["exit_status"]) == ("completed", "a-name", 0)
    listed = json.loads(up.cli("task", "list", "--name", "a-name", "--json").stdout)
    assert [each["id"] for each in listed["tasks"]] == [task_id]
    assert up.cli("task", "log", task_id, "--offset", "6").stdout == "second\n"
    kinds = [event["kind"] for event in json.loads(up.cli("task", "story", task_id, "--json").stdout)["events"]]
    assert kinds[0] == "submitted"
    assert kinds[-1] == "resolved"
    assert "completed" in up.cli("why", task_id).stdout
    audit = json.loads(up.cli("audit", "list", "--task", task_id, "--json").stdout)["rows"]
    assert [(row["phase"], row["argv"][0]) for row in audit] == [("completed", "sh")]


def test_cancel_reaches_the_process(up: Up) -> None:
    task_id = up.cli("run", "--detach", "--", "sh", "-c", "trap '' TERM; sleep 4321").stdout.strip()
    wait_until(lambda: running(up, task_id), "running")
    wait_until(lambda: sleeping("4321"), "the process")

    canceled = up.cli("task", "cancel", task_id)

    assert "exception (canceled)" in canceled.stderr
    wait_until(lambda: not sleeping("4321"), "its death", within_s=5)


def test_ctrl_c_cancels_the_task_and_exits_with_130(up: Up) -> None:
    # a shell's background job, as a test run may be, ignores SIGINT, and so would its children
    plain = ("env", "--default-signal=INT", sys.executable, "-m", "corral")
    process = subprocess.Popen(
        [*plain, "run", "--name", "interrupted", "--", "sh", "-c", "echo started; sleep 4322"],
        env=environment(up.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"

    process.send_signal(signal.SIGINT)

    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "canceled" in complaint
    wait_until(lambda: not sleeping("4322"), "its death", within_s=5)


def test_a_dependent_task_waits_for_the_first_one(up: Up) -> None:
    first = up.cli("run", "--detach", "--", "sh", "-c", "sleep 0.5").stdout.strip()

    second = up.cli("run", "--needs", first, "--", "echo", "after")

    assert second.stdout == "after\n"
    assert json.loads(up.cli("task", "show", first, "--json").stdout)["phase"] == "completed"


def test_mistakes_in_a_submission_are_listed_at_once(up: Up, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"payload": {"comand": ["x"], "env": 3}, "priorty": "low", "retries": "x"}')

    done = up.cli("task", "submit", str(tmp_path / "task.json"))

    assert done.returncode == 2
    for place in ("priorty", "retries"):
        assert place in done.stderr


def test_a_worker_that_is_killed_is_started_again_and_its_task_runs_again(up: Up) -> None:
    task_id = up.cli("run", "--detach", "--", "sh", "-c", FIRST_RUN_HANGS).stdout.strip()
    wait_until(lambda: running(up, task_id), "running")

    up.part("worker").kill()

    done = up.cli("task", "wait", task_id, within_s=90)
    assert done.returncode == 0, done.stderr
    task = json.loads(up.cli("task", "show", task_id, "--json").stdout)
    assert [run["reason"] for run in task["runs"]] == ["claim-expired", None]
    assert up.cli("task", "log", task_id).stdout.endswith("survived\n")


def test_a_worker_that_ends_without_an_error_is_started_again(up: Up) -> None:
    worker = up.part("worker")

    worker.terminate()

    wait_until(lambda: not worker.is_running() and up.child("worker") is not None, "another worker", within_s=60)
    assert up.cli("run", "-q", "--", "echo", "here", within_s=90).stdout == "here\n"


def test_a_scheduler_that_is_killed_comes_back_on_its_ports_with_its_tasks(up: Up) -> None:
    task_id = up.cli("run", "--detach", "--", "sh", "-c", "sleep 3; echo survived").stdout.strip()
    wait_until(lambda: running(up, task_id), "running")

    up.part("scheduler").kill()

    wait_until(lambda: up.cli("task", "show", task_id).returncode == 0, "the scheduler", within_s=60)
    assert up.cli("task", "wait", task_id, within_s=90).returncode == 0
    assert len(json.loads(up.cli("task", "show", task_id, "--json").stdout)["runs"]) == 1


def test_a_second_up_on_the_same_data_directory_is_refused_and_names_the_first(up: Up) -> None:
    second = run_cli("up", "--data-dir", str(up.data), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")

    assert second.returncode == 2
    assert f"pid {up.process.pid}" in second.stderr
    assert "--data-dir" in second.stderr


def test_a_port_in_use_is_refused_and_named(up: Up, tmp_path: Path) -> None:
    for option, taken in (("--http", up.url.removeprefix("http://")), ("--grpc", up.grpc)):
        free = {"--http": "127.0.0.1:0", "--grpc": "127.0.0.1:0"} | {option: taken}

        second = run_cli("up", "--data-dir", str(tmp_path / "other"), *(word for pair in free.items() for word in pair))

        assert second.returncode == 2
        assert second.stderr.splitlines()[:2] == [
            f"corral: error: {taken} is in use by another process",
            f"corral: hint: stop that one, or choose another address with {option} (port 0 takes a free one)",
        ]


def test_an_unknown_configuration_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "corral.toml").write_text("[worker]\nslotz = 1\n")

    done = run_cli("up", "--data-dir", str(tmp_path / "data"), cwd=tmp_path)

    assert done.returncode == 2
    assert 'worker.slotz: is not a known key; did you mean "slots"?' in done.stderr


def test_no_scheduler_says_what_to_type() -> None:
    done = run_cli("task", "list", url="http://127.0.0.1:1")

    assert done.returncode == 3
    assert "no scheduler answers at http://127.0.0.1:1" in done.stderr
    assert "corral up" in done.stderr


@needs_agent
def test_scheduler_and_worker_idle_under_150_mib(up: Up) -> None:
    total = up.part("scheduler").memory_info().rss + up.part("worker").memory_info().rss

    assert total < 150 * 1024**2, f"{total / 1024**2:.0f} MiB"


@needs_agent
def test_sigterm_stops_everything_in_order(tmp_path: Path) -> None:
    running_up = start_up(tmp_path)
    others = running_up.descendants()
    assert others

    assert running_up.stop() == 0, running_up.words()
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in others)
    assert not (tmp_path / "ready").exists()
    assert "Traceback" not in running_up.log.read_text()


@needs_agent
def test_a_second_corral_on_the_machine_starts_without_the_port_that_the_first_one_has(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # then somebody else has it, which is as good
            taken.bind(("127.0.0.1", 8980))
            taken.listen()
        second = start_up(tmp_path, "reapi.address=")  # its default
        try:
            assert "reapi.address" in second.words(), "the closed door is told, with its setting"
            assert second.cli("task", "list").returncode == 0
        finally:
            second.stop()


@needs_agent
def test_nothing_survives_kill_9(tmp_path: Path) -> None:
    running_up = start_up(tmp_path)
    task_id = running_up.cli("run", "--detach", "--", "sh", "-c", "sleep 4323").stdout.strip()
    wait_until(lambda: running(running_up, task_id), "running")
    wait_until(lambda: sleeping("4323"), "the process")
    others = running_up.descendants()

    running_up.kill()

    psutil.wait_procs(others, timeout=10)
    assert [each for each in others if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
    wait_until(lambda: not sleeping("4323"), "its death", within_s=5)


def running(up: Up, task_id: str) -> bool:
    task = json.loads(up.cli("task", "show", task_id, "--json").stdout)
    return bool(task["runs"]) and task["runs"][-1].get("started_s") is not None


def sleeping(argument: str) -> bool:
    for each in psutil.process_iter(["cmdline"]):
        if (each.info["cmdline"] or [])[:2] == ["sleep", argument]:
            return True
    return False
