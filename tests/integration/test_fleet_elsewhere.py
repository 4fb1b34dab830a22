"""Workers that share no disk with their scheduler: everything they need and make travels over gRPC."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from corral.testing.processes import (
    CorralProcess,
    clean_environment,
    fixed_addresses,
    public_directory,
    terminate_all,
    wait_until,
    why_no_agent,
)

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]

TOKEN = "worker-token-0123456789"
LEASE_S = 3.0
SETTINGS = (
    *(f"queue.lease_s={LEASE_S}", f"fleet.lease_s={LEASE_S}", "queue.sweep_every_s=0.1"),
    *("logs.forget_every_s=0.2", "logs.seal_grace_s=0.5"),
)


@dataclass
class Fleet:
    """A scheduler, two workers with one slot each, and whoever uses them."""

    home: Path
    scheduler: CorralProcess
    workers: dict[str, CorralProcess]

    def get(self, path: str, **query: Any) -> Any:
        answer = httpx.get(f"{self.scheduler.url}/api/v1{path}", params=query, trust_env=False, timeout=30)
        assert answer.is_success, answer.text
        return answer.json()

    def submit(self, script: str, **more: Any) -> str:
        fields: dict[str, Any] = {name: more.pop(name) for name in ("retries", "expires_s") if name in more}
        body = {"payload": {"command": ["sh", "-c", script], **more}, **fields}
        answer = httpx.post(f"{self.scheduler.url}/api/v1/tasks", json=body, trust_env=False, timeout=30)
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    def wait(self, task_id: str, *, phase: str = "completed") -> dict[str, Any]:
        done = self.cli("task", "wait", task_id, "--json")
        task: dict[str, Any] = self.get(f"/tasks/{task_id}")
        assert task["phase"] == phase, (task, done.stderr)
        return task

    def cli(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "corral", *arguments],
            env={**clean_environment(), "CORRAL_URL": self.scheduler.url},
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def log(self, task_id: str) -> str:
        return self.cli("task", "log", "-f", task_id).stdout

    def states(self) -> dict[str, str]:
        return {worker["id"]: worker["state"] for worker in self.get("/workers")["workers"]}

    def both_work(self) -> bool:
        for worker in self.workers.values():
            worker.check_alive()
        return self.states() == dict.fromkeys(self.workers, "ready")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with public_directory() as home:
        scheduler = CorralProcess(
            *("scheduler", home / "scheduler", *fixed_addresses(), *SETTINGS),
            env={"CORRAL_ACCESS__WORKER_TOKENS": TOKEN},
        )
        scheduler.start()
        workers = {
            name: CorralProcess(
                *("worker", home / name, f"join.scheduler={scheduler.grpc}", f"join.id={name}", "worker.slots=1"),
                *("join.link.retry_max_s=0.5", "worker.retry_max_s=0.5"),
                env={"CORRAL_JOIN__TOKEN": TOKEN},
            )
            for name in ("wrk_ann", "wrk_bob")
        }
        made = Fleet(home, scheduler, workers)
        try:
            for worker in workers.values():
                worker.start()
            wait_until(made.both_work, "two ready workers")
            yield made
        finally:
            terminate_all([*workers.values(), scheduler])


def only(fleet: Fleet, name: str) -> None:
    """Let only this worker take work."""
    for other in fleet.workers:
        verb = "undrain" if other == name else "drain"
        assert fleet.cli("worker", verb, other).returncode == 0
    wait_until(lambda: fleet.states()[name] == "ready" and "ready" not in others(fleet, name), "the drain")


def others(fleet: Fleet, name: str) -> set[str]:
    return {state for worker, state in fleet.states().items() if worker != name}


@pytest.fixture(autouse=True)
def nobody_is_drained(fleet: Fleet) -> Iterator[None]:
    yield
    for name in fleet.workers:
        fleet.cli("worker", "undrain", name)
    wait_until(fleet.both_work, "two ready workers")


def test_inputs_go_to_a_worker_elsewhere_and_artifacts_come_back(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_bytes(b"from here\n" * 100_000)

    done = fleet.cli(
        *("run", "-I", "src", "-a", "out.txt", "-a", "tree/", "-o", "fetched"),
        *("--", "sh", "-c", "cat a.txt a.txt > out.txt; mkdir -p tree/x; cp a.txt tree/x/b; echo done"),
        cwd=tmp_path,
    )

    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert (tmp_path / "fetched" / "out.txt").read_bytes() == b"from here\n" * 200_000
    assert (tmp_path / "fetched" / "tree" / "x" / "b").read_bytes() == b"from here\n" * 100_000


def test_an_artifact_of_one_worker_is_an_input_of_another(fleet: Fleet) -> None:
    only(fleet, "wrk_ann")
    first = fleet.submit("echo made by ann > a.txt", artifacts=[{"path": "a.txt"}])
    assert fleet.wait(first)["runs"][0]["worker"] == "wrk_ann"

    only(fleet, "wrk_bob")
    second = fleet.submit("cat b.txt", inputs=[{"path": "b.txt", "artifact": {"task": first, "name": "a.txt"}}])

    assert fleet.wait(second)["runs"][0]["worker"] == "wrk_bob"
    assert fleet.log(second) == "made by ann\n"


def test_a_cache_stays_on_its_worker(fleet: Fleet) -> None:
    only(fleet, "wrk_ann")
    cache = {"name": "deps", "path": "deps"}
    fleet.wait(fleet.submit("echo kept > deps/file", caches=[cache]))

    second = fleet.submit("cat deps/file", caches=[cache])

    fleet.wait(second)
    assert fleet.log(second) == "kept\n"


def test_two_workers_share_one_queue(fleet: Fleet) -> None:
    tasks = [fleet.submit("sleep 1") for _ in range(2)]

    runs = [fleet.wait(task)["runs"] for task in tasks]

    assert {run[0]["worker"] for run in runs} == {"wrk_ann", "wrk_bob"}
    assert all(len(run) == 1 for run in runs)


def test_a_drained_worker_finishes_what_it_has_and_takes_nothing_new(fleet: Fleet) -> None:
    long = [fleet.submit("sleep 1.5; echo finished") for _ in range(2)]
    wait_until(lambda: all(running(fleet, task) for task in long), "both to run")

    assert fleet.cli("worker", "drain", "wrk_ann").returncode == 0
    later = [fleet.submit("true") for _ in range(4)]

    assert all(len(fleet.wait(task)["runs"]) == 1 for task in long)
    assert {fleet.wait(task)["runs"][0]["worker"] for task in later} == {"wrk_bob"}
    assert fleet.states()["wrk_ann"] == "drained"


def running(fleet: Fleet, task_id: str) -> bool:
    runs = fleet.get(f"/tasks/{task_id}")["runs"]
    return bool(runs) and runs[-1].get("started_s") is not None


def test_the_log_of_an_ended_task_is_a_blob_that_the_run_and_the_ledger_name(fleet: Fleet) -> None:
    task_id = fleet.submit("seq 1 50000")
    fleet.wait(task_id)
    wait_until(lambda: fleet.get(f"/tasks/{task_id}")["runs"][0].get("log"), "the digest of the log")
    run = fleet.get(f"/tasks/{task_id}")["runs"][0]
    expected = "".join(f"{number}\n" for number in range(1, 50001))

    assert [row["log"] for row in fleet.get("/audit", task_id=task_id)["rows"]] == [run["log"]]
    assert run["log_bytes"] == len(expected)
    fleet.scheduler.stop()
    shutil.rmtree(fleet.scheduler.data / "logs")  # only the blob is left
    fleet.scheduler.start()

    assert fleet.log(task_id) == expected
    assert fleet.cli("task", "log", task_id, "--offset", str(len(expected) - 6)).stdout == "50000\n"
    wait_until(fleet.both_work, "two ready workers")


def test_a_log_whose_run_ended_while_nobody_was_there_is_finished_at_the_start(fleet: Fleet) -> None:
    task_id = fleet.submit("echo before the end; sleep 4444", retries=0)
    wait_until(lambda: "before the end" in fleet.cli("task", "log", task_id).stdout, "the first line")
    name = fleet.get(f"/tasks/{task_id}")["runs"][0]["worker"]
    fleet.scheduler.kill()
    fleet.workers[name].kill()
    fleet.scheduler.start()

    task = fleet.wait(task_id, phase="exception")

    assert task["reason"] == "claim-expired"
    assert fleet.log(task_id) == "before the end\n"
    wait_until(lambda: fleet.get(f"/tasks/{task_id}")["runs"][0].get("log"), "the digest of the log")
    fleet.workers[name].start()


def test_logs_of_forgotten_tasks_are_forgotten(fleet: Fleet) -> None:
    task_id = fleet.submit("echo gone soon", expires_s=0.5)

    def files() -> list[Path]:
        return list(fleet.scheduler.data.glob(f"logs/*/{task_id}.*"))

    wait_until(lambda: bool(files()), "a log")
    wait_until(lambda: not files(), "its end")


def test_the_worker_command_joins_the_scheduler_that_it_is_told(fleet: Fleet, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "corral", "worker", "--scheduler", fleet.scheduler.grpc]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [*command, "--data-dir", str(tmp_path / "data"), "--set", "join.id=wrk_wrong"],
            env={**clean_environment(), "CORRAL_JOIN__TOKEN": "no-workers-token-0123"},
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: b"scheduler-not-connected" in (tmp_path / "log").read_bytes(), "a complaint")
        said = (tmp_path / "log").read_text()
        assert fleet.scheduler.grpc in said
        assert "a valid token is needed" in said
        assert re.search(r"cure=.*join\.token.*CORRAL_JOIN__TOKEN", said), said
        wait_until(lambda: len(refusals(fleet)) == 1, "the security event")
        assert "wrk_wrong" not in fleet.states()
    finally:
        worker.terminate()
        assert worker.wait(30) in (0, 1)
    assert len(refusals(fleet)) == 1  # however often it tried


def refusals(fleet: Fleet) -> list[dict[str, Any]]:
    events = fleet.get("/security-events")["events"]
    found = [event for event in events if event["actor"] == "wrk_wrong"]
    assert all(event["kind"] == "worker-token-unknown" for event in found), json.dumps(found)
    return found
