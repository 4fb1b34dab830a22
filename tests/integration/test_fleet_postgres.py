"""Corral on PostgreSQL with an object store: alone, and two schedulers over one database."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from corral.testing.processes import (
    CorralProcess,
    fixed_addresses,
    public_directory,
    terminate_all,
    wait_until,
    why_no_agent,
)
from corral.testing.seaweedfs import running_seaweedfs

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_no_agent()), reason=why_no_agent() or "there is an agent"),
]

TOKEN = "worker-token-0123456789"
LEASE_S = 4.0
_prefixes = count()


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_seaweedfs(tmp_path_factory.mktemp("weed")) as url:
        yield url


def write_config(home: Path, *, database: str, s3_url: str) -> str:
    """One file for every process: what they share."""
    file = home / "corral.toml"
    file.write_text(f"""
[scheduler]
database = "{database}"
[access]
worker_tokens = ["{TOKEN}"]
[join]
token = "{TOKEN}"
link = {{ retry_max_s = 0.5 }}
[worker]
slots = 2
retry_max_s = 0.5
[queue]
lease_s = {LEASE_S}
sweep_every_s = 0.1
[fleet]
lease_s = {LEASE_S}
heartbeat_s = 0.5
silent_after_s = 5.0
desired_poll_s = 0.5
[[blobs.tiers]]
kind = "disk"
[[blobs.tiers]]
kind = "object-store"
name = "s3"
url = "s3://corral/test-{next(_prefixes)}"
options = {{ endpoint = "{s3_url}", access_key_id = "any", secret_access_key = "any", region = "us-east-1" }}
""")
    return str(file)


def get(process: CorralProcess, path: str, **query: Any) -> Any:
    answer = httpx.get(f"{process.url}/api/v1{path}", params=query, trust_env=False, timeout=30)
    assert answer.is_success, answer.text
    return answer.json()


def submit(process: CorralProcess, script: str, **payload: Any) -> str:
    body = {"payload": {"command": ["sh", "-c", script], **payload}}
    answer = httpx.post(f"{process.url}/api/v1/tasks", json=body, trust_env=False, timeout=30)
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


def ended(process: CorralProcess, task_id: str, *, within_s: float = 60) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(get(process, f"/tasks/{task_id}"))
        return found["phase"] in ("completed", "failed", "exception")

    wait_until(look, f"the end of {task_id}", within_s=within_s, log=process.log)
    return found


def text(process: CorralProcess, path: str, **query: Any) -> str:
    answer = httpx.get(f"{process.url}/api/v1{path}", params=query, trust_env=False, timeout=60)
    assert answer.is_success, answer.text
    return answer.text


@pytest.fixture
def home() -> Iterator[Path]:
    with public_directory() as path:
        yield path


def test_up_runs_on_postgresql_with_an_object_store(postgres_database_url: str, s3_url: str, home: Path) -> None:
    config = write_config(home, database=postgres_database_url, s3_url=s3_url)
    up = CorralProcess("up", home / "up", *fixed_addresses(), env={"CORRAL_CONFIG": config})
    try:
        up.start()
        first = submit(up, "echo some text | tee a.txt", artifacts=[{"path": "a.txt"}])
        assert ended(up, first)["phase"] == "completed"
        digest = get(up, f"/tasks/{first}/artifacts")["artifacts"][0]["artifact"]["digest"]

        second = submit(up, "cat b.txt; mkdir t; cp b.txt t/c", inputs=[{"path": "b.txt", "digest": digest}])

        assert ended(up, second)["phase"] == "completed"
        assert text(up, f"/tasks/{second}/runs/0/log", follow="1") == "some text\n"
        assert not (up.data / "corral.db").exists()
        stored = httpx.get(f"{s3_url}/corral?list-type=2", trust_env=False, timeout=10).text
        assert digest.split(":")[1].split("-")[0] in stored, (digest, stored[:2000])
    finally:
        terminate_all([up])


class Pair:
    """Two schedulers over one database, each with one worker; no disk is shared."""

    def __init__(self, home: Path, config: str) -> None:
        env = {"CORRAL_CONFIG": config}
        self.schedulers = [CorralProcess("scheduler", home / f"s{n}", *fixed_addresses(), env=env) for n in (1, 2)]
        self.workers: list[CorralProcess] = []
        self._home, self._env = home, env

    def start(self) -> None:
        for each in self.schedulers:
            each.start_nowait()
        for number, each in enumerate(self.schedulers, start=1):
            wait_until(each.is_ready, "a scheduler", within_s=90, log=each.log)
            settings = f"join.scheduler={each.grpc}", f"join.id=wrk_{number}"
            self.workers.append(CorralProcess("worker", self._home / f"w{number}", *settings, env=self._env))
            self.workers[-1].start_nowait()
        wait_until(self.is_whole, "each scheduler to know both workers", within_s=90)

    def is_whole(self) -> bool:
        for worker in self.workers:
            worker.check_alive()
        return self.seen_by(0) == self.seen_by(1) == BOTH

    def seen_by(self, number: int) -> dict[str, str]:
        return {worker["id"]: worker["state"] for worker in get(self.schedulers[number], "/workers")["workers"]}


# The leases of its worker may have ended before it was back: then the task ran again, and the first run did not count.
ONCE_COMPLETED = [("completed", []), ("completed", ["claim-expired"])]
BOTH = {"wrk_1": "ready", "wrk_2": "ready"}


@pytest.fixture(scope="module")
def the_pair(module_postgres_database_url: str, s3_url: str) -> Iterator[Pair]:
    with public_directory() as home:
        made = Pair(home, write_config(home, database=module_postgres_database_url, s3_url=s3_url))
        try:
            made.start()
            yield made
        finally:
            terminate_all([*made.workers, *made.schedulers])


@pytest.fixture
def pair(the_pair: Pair) -> Iterator[Pair]:
    yield the_pair
    for worker in BOTH:
        httpx.post(f"{the_pair.schedulers[0].url}/api/v1/workers/{worker}/undrain", trust_env=False, timeout=30)
    wait_until(the_pair.is_whole, "both workers at both schedulers", within_s=60)


def test_tasks_submitted_at_either_scheduler_run_once_and_are_the_same_at_both(pair: Pair) -> None:
    first, second = pair.schedulers
    tasks = [submit(pair.schedulers[number % 2], f"echo task {number}; sleep 0.2") for number in range(30)]

    views = [ended(first, task) for task in tasks]

    assert [view["phase"] for view in views] == ["completed"] * 30
    assert {len(view["runs"]) for view in views} == {1}
    assert {view["runs"][0]["worker"] for view in views} == {"wrk_1", "wrk_2"}
    for number, task in enumerate(tasks):
        for scheduler in (first, second):
            assert text(scheduler, f"/tasks/{task}/runs/0/log", follow="1") == f"task {number}\n"
    rows = {row["task_id"]: row for row in get(second, "/audit", limit=100)["rows"]}
    assert set(rows) == set(tasks)


def test_a_log_that_grows_at_one_scheduler_is_whole_at_the_other_when_it_ends(pair: Pair) -> None:
    task = submit(pair.schedulers[0], "echo begin; sleep 1.5; echo end")
    wait_until(lambda: bool(get(pair.schedulers[0], f"/tasks/{task}")["runs"][0].get("started_s")), "its start")

    logs = [text(scheduler, f"/tasks/{task}/runs/0/log", follow="1") for scheduler in pair.schedulers]

    assert logs == ["begin\nend\n"] * 2


def test_a_scheduler_that_is_killed_loses_nothing_and_the_other_goes_on(pair: Pair) -> None:
    first, second = pair.schedulers
    held = [submit(first, "sleep 3; echo survived") for _ in range(4)]
    wait_until(lambda: all(get(second, f"/tasks/{task}")["runs"][0].get("started_s") for task in held), "their start")

    first.kill()
    meanwhile = [submit(second, "echo meanwhile") for _ in range(4)]
    assert [ended(second, task)["phase"] for task in meanwhile] == ["completed"] * 4
    first.start()

    for task in held:
        view = ended(first, task)
        assert (view["phase"], [run["reason"] for run in view["runs"][:-1]]) in ONCE_COMPLETED
        assert text(second, f"/tasks/{task}/runs/{len(view['runs']) - 1}/log", follow="1") == "survived\n"


def test_the_work_of_a_scheduler_that_stays_away_is_done_by_the_other(pair: Pair) -> None:
    first, second = pair.schedulers
    held = [submit(second, "sleep 2; echo done") for _ in range(4)]
    wait_until(lambda: all(get(second, f"/tasks/{task}")["runs"][0].get("started_s") for task in held), "their start")

    first.kill()
    killed_s = time.monotonic()

    views = [ended(second, task) for task in held]
    assert [view["phase"] for view in views] == ["completed"] * 4
    assert time.monotonic() - killed_s < 4 * LEASE_S
    assert {view["runs"][-1]["worker"] for view in views} == {"wrk_2"}
    wait_until(lambda: pair.seen_by(1)["wrk_1"] == "evicted", "the eviction of a worker without a home")
    first.start()  # and its worker comes back with it


def test_a_drain_and_a_cancel_reach_a_worker_through_the_other_scheduler(pair: Pair) -> None:
    first, second = pair.schedulers
    tasks = [submit(first, "sleep 4567") for _ in range(4)]
    wait_until(lambda: all(get(first, f"/tasks/{task}")["runs"][0].get("started_s") for task in tasks), "their start")

    for verb in ("workers/wrk_1/drain", *(f"tasks/{task}/cancel" for task in tasks)):
        answer = httpx.post(f"{second.url}/api/v1/{verb}", trust_env=False, timeout=30)
        assert answer.is_success, answer.text

    wait_until(lambda: pair.seen_by(0) == {"wrk_1": "drained", "wrk_2": "ready"}, "the drain")
    wait_until(lambda: not sleeping("4567"), "the end of the processes", within_s=15)


def sleeping(argument: str) -> bool:
    return any((each.info["cmdline"] or [])[:2] == ["sleep", argument] for each in psutil.process_iter(["cmdline"]))
